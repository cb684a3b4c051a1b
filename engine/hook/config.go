package hook

import (
	"errors"
	"fmt"
	"time"
)

// Backend says which of the kernel's two packet filters iptables writes to. All
// programs of a node should use the same one: rules of the other are in force
// too, but nobody sees them.
type Backend uint8

const (
	// Auto uses the backend that the kubelet uses, else that of the iptables in
	// PATH.
	Auto Backend = iota
	// NFT is nf_tables (iptables-nft).
	NFT
	// Legacy is x_tables (iptables-legacy).
	Legacy
)

func (b Backend) String() string {
	switch b {
	case NFT:
		return "nft"
	case Legacy:
		return "legacy"
	}
	return "auto"
}

// MarshalText renders the backend as String does.
func (b Backend) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads what MarshalText renders.
func (b *Backend) UnmarshalText(text []byte) error {
	for _, known := range [...]Backend{Auto, NFT, Legacy} {
		if known.String() == string(text) {
			*b = known
			return nil
		}
	}
	return fmt.Errorf("backend %q is neither auto, nft nor legacy", text)
}

// Defaults of Config.
const (
	DefaultPrefix = "NETVERDICT"

	// DefaultMarkMask and DefaultConnmarkMask are the bits that are least used by
	// others: 0x4000 and 0x8000 belong to kube-proxy and the kubelet, 0x2000 to
	// the CNI portmap plugin, 0x10000 and 0x20000 to kube-router, 0x20000 and
	// 0x40000 to Weave, 0xff0000 to Tailscale, 0x80 to the AWS VPC CNI, and
	// Istio compares the whole mark with 1337 (0x539). Calico (0xffff0000, its
	// IptablesMarkMask), Cilium (0xffff0f00) and Antrea enforce policy
	// themselves; beside them, choose other bits there or here.
	DefaultMarkMask     = 0xff000000
	DefaultConnmarkMask = 0xff000000

	DefaultMaxElem        = 262144
	DefaultCommandTimeout = 30 * time.Second
)

// MaxAskLimit is the rate beyond which the kernel's hashlimit match
// cannot count (XT_HASHLIMIT_SCALE_v2 in linux/netfilter/xt_hashlimit.h).
const MaxAskLimit = 1_000_000

// maxTimeout is IPSET_MAX_TIMEOUT in linux/netfilter/ipset/ip_set.h.
const maxTimeout = 2147483 * time.Second

// Config describes a hook. The zero value of a field means its default, unless
// it says otherwise.
type Config struct {
	Backend Backend
	// IPv4 and IPv6 say for which families packets are hooked; at least one.
	IPv4, IPv6 bool
	// Prefix begins the names of chains, and, in small letters, of sets.
	Prefix string
	// MarkMask and ConnmarkMask are the bits of the packet mark and of the
	// connection mark that are ours, at least five each: one tells the two kinds
	// of mark apart, two say a verdict, the others an epoch or a generation.
	// Nobody else may write them, except to copy one mark into the other. Half of
	// the number of generations is how many revoking switches there are between
	// two searches through the connection table.
	MarkMask, ConnmarkMask uint32
	// QueueNum is the first queue; QueueCount how many there are from there on.
	// The default count is 1.
	QueueNum, QueueCount uint16
	// FailOpen lets packets pass while nobody reads the queue (--queue-bypass).
	FailOpen bool
	// AllowTimeout and DenyTimeout are how long the kernel remembers a verdict
	// for all connections of its kind before it asks again, in whole seconds. 0
	// means not at all: there is no such set then.
	AllowTimeout, DenyTimeout time.Duration
	// AskLimit is how many new connections a second of one source address are asked
	// about; more are dropped, so that a flood of one pod leaves room for the others.
	// 0 is no limit, up to MaxAskLimit.
	AskLimit uint32
	// Answers says that denied packets may come to be answered (Policed.Answers):
	// whether the kernel can note where connections were addressed is tried then.
	Answers bool
	// AntiSpoof drops packets from interfaces behind which pods are (SetPodLinks)
	// whose source address is routed elsewhere.
	AntiSpoof bool
	// MaxElem bounds each of the sets that remember verdicts. A set that is full
	// remembers no more; what it does not know is asked.
	MaxElem uint32
	// CommandTimeout bounds each run of an iptables command, which includes the
	// wait for the lock that all iptables commands share.
	CommandTimeout time.Duration

	pace    *pace  // of CommandTimeout
	sources uint32 // floodSources, but in tests
}

func (c *Config) setDefaults() {
	orDefault(&c.Prefix, DefaultPrefix)
	orDefault(&c.MarkMask, DefaultMarkMask)
	orDefault(&c.ConnmarkMask, DefaultConnmarkMask)
	orDefault(&c.QueueCount, 1)
	orDefault(&c.MaxElem, DefaultMaxElem)
	orDefault(&c.CommandTimeout, DefaultCommandTimeout)
	orDefault(&c.sources, floodSources)
	c.pace = newPace(c.CommandTimeout)
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c *Config) validate() error {
	switch {
	case !c.IPv4 && !c.IPv6:
		return errors.New("neither IPv4 nor IPv6 is to be hooked: want at least one")
	case c.Backend > Legacy:
		return fmt.Errorf("backend %d: want auto, nft or legacy", c.Backend)
	case int(c.QueueNum)+int(c.QueueCount) > 1<<16:
		return fmt.Errorf("queues %d to %d: want numbers up to 65535", c.QueueNum, int(c.QueueNum)+int(c.QueueCount)-1)
	case c.AskLimit > MaxAskLimit:
		return fmt.Errorf("ask limit %d: want at most %d new connections a second, or 0 for no limit", c.AskLimit, MaxAskLimit)
	case c.CommandTimeout < 0:
		return fmt.Errorf("command timeout %v: want a positive time", c.CommandTimeout)
	}
	return errors.Join(validTimeout("allow", c.AllowTimeout), validTimeout("deny", c.DenyTimeout))
}

func validTimeout(what string, t time.Duration) error {
	if t < 0 || t > maxTimeout || t%time.Second != 0 {
		return fmt.Errorf("%s timeout %v: want whole seconds up to %v, or 0 for no %s set", what, t, maxTimeout, what)
	}
	return nil
}

// families lists the families that are hooked.
func (c *Config) families() (fs []family) {
	if c.IPv4 {
		fs = append(fs, ipv4)
	}
	if c.IPv6 {
		fs = append(fs, ipv6)
	}
	return fs
}
