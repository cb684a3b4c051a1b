package hook

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What each mode of kube-proxy leaves on a node and no other program makes. (The
// chain KUBE-SERVICES tells nothing: the mode ipvs has it, too.)
const (
	proxyCanary = "KUBE-PROXY-CANARY" // chain of the table mangle, pkg/proxy/iptables/proxier.go
	proxyDummy  = "kube-ipvs0"        // interface, pkg/proxy/ipvs/proxier.go
	proxyTable  = "kube-proxy"        // table of nf_tables, pkg/proxy/nftables/proxier.go
)

// KubeProxy returns the modes of kube-proxy that have left traces on this node:
// "iptables", "ipvs", "nftables". Usually that is one; none where something else does
// Services; several after the mode was changed without a cleanup.
func (h *Hook) KubeProxy() (modes []string, err error) {
	err = h.ns.do(func() error {
		var errs []error
		for _, mode := range []struct {
			name string
			find func() (bool, error)
		}{{"iptables", h.proxiesByIptables}, {"ipvs", proxiesByIPVS}, {"nftables", proxiesByNftables}} {
			found, err := mode.find()
			if found {
				modes = append(modes, mode.name)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		err = fmt.Errorf("find out how kube-proxy works: %w", err)
	}
	return modes, err
}

// proxiesByIptables looks into both backends: kube-proxy brings an iptables of its own.
func (h *Hook) proxiesByIptables() (bool, error) {
	for _, b := range [...]Backend{NFT, Legacy} {
		for _, f := range [...]family{ipv4, ipv6} {
			t, err := findTables(f, b, h.cfg.pace)
			if err != nil || !t.inUse() {
				continue // no command for it here, so who knows
			}
			s, err := t.read()
			if err != nil {
				return false, err
			}
			if slices.Contains(s.chains, proxyCanary) {
				return true, nil
			}
		}
	}
	return false, nil
}

func proxiesByIPVS() (bool, error) {
	_, err := netlink.LinkByName(proxyDummy)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return false, nil
	}
	return err == nil, err
}

// nftGetTable is NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE, nftTableName
// NFTA_TABLE_NAME (linux/netfilter/nfnetlink.h, nf_tables.h).
const (
	nftGetTable  = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETTABLE
	nftTableName = unix.NFTA_TABLE_NAME
)

func proxiesByNftables() (found bool, err error) {
	conn, err := dialNfnetlink()
	if err != nil {
		return false, err
	}
	defer conn.close()
	err = conn.execute(nftGetTable, unix.NLM_F_DUMP, unix.AF_UNSPEC, nil, func(attrs []byte) error {
		eachAttribute(attrs, func(typ uint16, data []byte) {
			found = found || typ == nftTableName && string(bytes.TrimRight(data, "\x00")) == proxyTable
		})
		return nil
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil // a kernel without nf_tables has no such table
	}
	return found, err
}
