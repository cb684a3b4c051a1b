package hook

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The types of our sets, see ipset(8).
const (
	keyType  = "hash:ip,port,ip" // what verdicts depend on
	addrType = "hash:net"        // what is asked about: ranges, addresses, and exceptions (nomatch)
	linkType = "hash:net,iface"  // interfaces behind which pods are, and bridges
)

// addrRevision of hash:net is the first one with nomatch (net/netfilter/ipset/ip_set_hash_net.c).
const addrRevision = 2

// maxAddrs bounds the sets of addresses far above what a node can have.
const maxAddrs = 1 << 20

// sets manages ipsets in the namespace in which it was opened. It must not be
// used by several goroutines at once.
type sets struct {
	handle *netlink.Handle
	conn   *nfnetlink
}

func openSets() (*sets, error) {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket for ipset: %w (kernel option CONFIG_NETFILTER_NETLINK)", err)
	}
	conn, err := dialNfnetlink()
	if err != nil {
		h.Close()
		return nil, err
	}
	return &sets{h, conn}, nil
}

// setSpec describes one set.
type setSpec struct {
	name     string
	typename string
	family   family
	timeout  time.Duration // of entries by default; 0 for a set without timeouts
	counters bool
	maxElem  uint32
	hashSize uint32 // buckets at the beginning; 0 for the default, 1024
}

func (s *sets) create(spec setSpec) error {
	attrs := setNamed(spec.name, nil).
		with(nl.IPSET_ATTR_TYPENAME, append([]byte(spec.typename), 0)).
		with(nl.IPSET_ATTR_REVISION, []byte{spec.revision()}).
		with(nl.IPSET_ATTR_FAMILY, []byte{spec.family.af()}).
		with(nl.IPSET_ATTR_DATA|unix.NLA_F_NESTED, spec.data())
	if err := s.execute(nl.IPSET_CMD_CREATE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, attrs, nil); err != nil {
		return fmt.Errorf("create ipset %s (%s): %w", spec.name, spec.typename, explainSet(err))
	}
	return nil
}

// revision is the first one of the type with what the set needs (the tables of
// features in net/netfilter/ipset/ip_set_hash_net.c and ip_set_hash_ipportip.c).
func (spec *setSpec) revision() byte {
	switch {
	case spec.typename == addrType:
		return addrRevision
	case spec.counters:
		return 2
	}
	return 1
}

func (spec *setSpec) data() attributes {
	data := attributes{}.with(nl.IPSET_ATTR_MAXELEM|unix.NLA_F_NET_BYTEORDER, be32(spec.maxElem))
	if spec.timeout != 0 {
		data = data.with(nl.IPSET_ATTR_TIMEOUT|unix.NLA_F_NET_BYTEORDER, be32(uint32(spec.timeout/time.Second)))
	}
	if spec.counters {
		data = data.with(nl.IPSET_ATTR_CADT_FLAGS|unix.NLA_F_NET_BYTEORDER, be32(nl.IPSET_FLAG_WITH_COUNTERS))
	}
	if spec.hashSize != 0 {
		data = data.with(nl.IPSET_ATTR_HASHSIZE|unix.NLA_F_NET_BYTEORDER, be32(spec.hashSize))
	}
	return data
}

// keysPerBucket is for how many entries a bucket of a set of keys is made. A set does
// not grow when packets add to it, only when programs do, and its buckets take 12
// entries at most (AHASH_MAX_SIZE and the tests for -EAGAIN in
// net/netfilter/ipset/ip_set_hash_gen.h): with the default size it would be full
// at 12,288.
const keysPerBucket = 4

// ensure makes a set or adopts one that has the type and family.
func (s *sets) ensure(spec setSpec) error {
	have, err := s.list(spec.name)
	switch {
	case err != nil:
		return err
	case have == nil:
		return s.create(spec)
	case have.typename != spec.typename || have.family != spec.family.af():
		return fmt.Errorf("ipset %s exists, but is no %s of %v: destroy it, or choose another prefix",
			spec.name, spec.typename, spec.family)
	}
	return nil
}

// renew makes sure that a set which no rule uses exists as described and is
// empty.
func (s *sets) renew(spec setSpec) error {
	have, err := s.list(spec.name)
	if err != nil {
		return err
	}
	if have != nil && !spec.describes(have) {
		if err := s.destroy(spec.name); err != nil {
			return err
		}
		have = nil
	}
	if have == nil {
		return s.create(spec)
	}
	return s.empty(spec.name)
}

func (spec *setSpec) describes(have *setHeader) bool {
	return have.typename == spec.typename && have.family == spec.family.af() &&
		have.maxElem == spec.maxElem && have.hashSize >= spec.hashSize && have.timeout == (spec.timeout != 0) && have.counters == spec.counters
}

// empty flushes a set and makes sure that it is empty then.
func (s *sets) empty(name string) error {
	if err := s.handle.IpsetFlush(name); err != nil {
		return fmt.Errorf("flush ipset %s: %w", name, explainSet(err))
	}
	have, err := s.list(name)
	if err != nil {
		return err
	}
	if have != nil && have.entries != 0 {
		return fmt.Errorf("ipset %s has %d entries after a flush: somebody else fills it", name, have.entries)
	}
	return nil
}

// busyWait is how long destroy waits for the kernel to let go of a set: nf_tables
// frees deleted rules later, in the background (nf_tables_trans_destroy_work in
// net/netfilter/nf_tables_api.c).
const busyWait = 5 * time.Second

// destroy removes a set, if there is one.
func (s *sets) destroy(name string) error {
	for deadline, pause := time.Now().Add(busyWait), time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := s.handle.IpsetDestroy(name)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)) || time.Now().After(deadline) {
			return fmt.Errorf("destroy ipset %s: %w", name, explainSet(err))
		}
		time.Sleep(pause)
	}
}

func (s *sets) close() {
	s.handle.Close()
	s.conn.close()
}

// explainSet adds the likely fix to an error of ipset.
func explainSet(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (need CAP_NET_ADMIN)", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w (is the module ip_set loaded? kernel option CONFIG_IP_SET)", err)
	case errors.Is(err, nl.IPSetError(nl.IPSET_ERR_FIND_TYPE)):
		return fmt.Errorf("%w (load the modules ip_set_hash_net, ip_set_hash_netiface and ip_set_hash_ipportip; kernel options CONFIG_IP_SET_HASH_NET, CONFIG_IP_SET_HASH_NETIFACE, CONFIG_IP_SET_HASH_IPPORTIP)", err)
	case errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)):
		return fmt.Errorf("%w (a rule of somebody else uses it: iptables-save, iptables-legacy-save and nft list ruleset show which)", err)
	}
	return err
}

// awaitPackets returns when every packet that was on its way through the rules
// has left them. nf_tables does not wait for packets that still walk the rules
// it replaced; what they add to a retired set must come before its flush.
// MEMBARRIER_CMD_GLOBAL is synchronize_rcu() (kernel/sched/membarrier.c), and
// rules are walked under rcu_read_lock. It is missing on CPUs without a timer
// tick (nohz_full); there, time does nearly the same.
func awaitPackets() {
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		time.Sleep(packetTime)
	}
}

const (
	membarrierGlobal = 1 // MEMBARRIER_CMD_GLOBAL in linux/membarrier.h
	packetTime       = 20 * time.Millisecond
)
