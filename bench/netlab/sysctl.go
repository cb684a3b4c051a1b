//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// setting is a file below /proc/sys/net and what to write to it.
type setting struct{ path, value string }

// hostSysctls come first in every namespace: a new namespace may copy the root
// namespace's values (net.core.devconf_inherit_init_net), which differ between
// machines. "default" is what interfaces made later start with.
var hostSysctls = []setting{
	{"ipv4/ip_forward", "0"},
	{"ipv4/conf/all/rp_filter", "0"}, // the larger of all and the interface counts
	{"ipv4/conf/default/rp_filter", "0"},
	{"ipv6/conf/all/disable_ipv6", "0"},
	{"ipv6/conf/default/disable_ipv6", "0"},
	{"ipv6/conf/all/accept_dad", "0"}, // DAD is off only where both say so
	{"ipv6/conf/default/accept_dad", "0"},
	{"ipv6/conf/default/accept_ra", "0"},
	{"ipv6/conf/default/router_solicitations", "0"}, // nobody would answer
}

// routerSysctls are written after hostSysctls on nodes and the fabric.
var routerSysctls = []setting{
	{"ipv4/ip_forward", "1"},
	{"ipv6/conf/all/forwarding", "1"},
	{"ipv6/conf/default/forwarding", "1"},
}

// applySysctls writes the settings of the calling thread's namespace.
func applySysctls(settings []setting) error {
	for _, s := range settings {
		err := os.WriteFile("/proc/sys/net/"+s.path, []byte(s.value), 0)
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
			return fmt.Errorf("set sysctl net/%s to %s: %w (/proc/sys must be writable: "+
				"run as root, in a container with --privileged)", s.path, s.value, err)
		}
		if err != nil {
			return fmt.Errorf("set sysctl net/%s to %s: %w", s.path, s.value, err)
		}
	}
	return nil
}
