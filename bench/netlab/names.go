//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// netnsDir is where ip-netns(8) looks for named network namespaces.
const netnsDir = "/run/netns"

var (
	labName = regexp.MustCompile(`^[A-Za-z0-9]{1,32}$`)
	// hostName has room for "namespace/pod" and keeps file names ≤ 255 bytes.
	hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,198}[A-Za-z0-9])?$`)
)

func checkLabName(name string) error {
	if !labName.MatchString(name) {
		return fmt.Errorf("lab name %q: want 1–32 letters and digits", name)
	}
	return nil
}

func checkHostName(name string) error {
	if !hostName.MatchString(name) {
		return fmt.Errorf("host name %q: want 1–200 letters, digits, '.', '_', '/' or '-', with a letter or digit at both ends", name)
	}
	return nil
}

// kernelName is a host's name without "/", which neither interfaces nor files may have.
func kernelName(name string) string { return strings.ReplaceAll(name, "/", ".") }

// routerEnd names the router's end of the link to a host: "v-" and the host's
// name, shortened with a hash when the whole would pass 15 bytes (IFNAMSIZ-1).
func routerEnd(host string) string {
	name := "v-" + kernelName(host)
	if len(name) < unix.IFNAMSIZ {
		return name
	}
	h := fnv.New32a()
	h.Write([]byte(host))
	return fmt.Sprintf("%s-%06x", name[:8], h.Sum32()&0xffffff)
}

func namePrefix(lab string) string { return filepath.Join(netnsDir, "nv-"+lab+"-") }

// lockName makes the lab the only one of its name. The lock is an abstract
// unix socket: it ends with the process and leaves no file.
func lockName(lab string) (net.Listener, error) {
	lock, err := net.Listen("unix", "@netverdict-netlab-"+lab)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("a lab named %s is running already: choose another Options.Name: %w", lab, err)
	}
	return lock, err
}

// removeStale removes the files of a lab of this name that was killed. The
// caller holds the name's lock, so nobody uses them.
func removeStale(lab string) error {
	stale, err := filepath.Glob(namePrefix(lab) + "*")
	if err != nil {
		return err
	}
	for _, path := range stale {
		err = errors.Join(err, unmountName(path))
	}
	return err
}

// mountName makes a namespace visible at path for ip-netns(8).
func mountName(s *space, path string) error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("create the namespace file: %w", err)
	}
	f.Close()
	if err := unix.Mount(procPath(s), path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(privilegeError("mount a namespace on "+path, err), os.Remove(path))
	}
	return nil
}

// procPath is valid while the namespace is open and this process lives.
func procPath(s *space) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(s.fd)) }

func unmountName(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: a plain file, killed before the mount
		return privilegeError("unmount "+path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the namespace file: %w", err)
	}
	return nil
}
