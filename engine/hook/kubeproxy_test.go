package hook

import (
	"slices"
	"testing"
)

func TestKubeProxy(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   []string
	}{
		"none":            {"true", nil},
		"iptables":        {"iptables-nft -t mangle -N KUBE-PROXY-CANARY", []string{"iptables"}},
		"iptables legacy": {"iptables-legacy -t mangle -N KUBE-PROXY-CANARY", []string{"iptables"}},
		"iptables, IPv6":  {"ip6tables-nft -t mangle -N KUBE-PROXY-CANARY", []string{"iptables"}},
		"ipvs":            {"iptables-nft -t nat -N KUBE-SERVICES; ip link add kube-ipvs0 type veth peer name other", []string{"ipvs"}},
		"nftables":        {"nft add table ip6 kube-proxy; nft add table ip other", []string{"nftables"}},
		"changed":         {"nft add table ip kube-proxy; iptables-nft -t mangle -N KUBE-PROXY-CANARY", []string{"iptables", "nftables"}},
		"only a kubelet":  {"iptables-nft -t mangle -N KUBE-KUBELET-CANARY; nft add table ip kube-proxy-not", nil},
	} {
		t.Run(name, func(t *testing.T) {
			ns := newNamespace(t)
			h := ns.open(t, testConfig(NFT))
			ns.run(t, c.script)
			got, err := h.KubeProxy()
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%q, %v, want %q", got, err, c.want)
			}
		})
	}
}
