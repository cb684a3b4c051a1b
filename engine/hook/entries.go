package hook

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// entry is an element of one of our sets.
type entry struct {
	addr     netip.Addr // source address of a key
	bits     uint8      // of the prefix, in a set of addresses
	nomatch  bool       // an exception from the prefix around it
	dst      netip.Addr // of a key
	protocol uint8      // of a key
	port     uint16     // of a key
}

func (e entry) prefix() netip.Prefix { return netip.PrefixFrom(e.addr, int(e.bits)) }

// setHeader is what is known of a set besides its entries.
type setHeader struct {
	typename          string
	family            uint8
	maxElem           uint32
	hashSize          uint32
	entries           uint32 // those that have timed out may be counted
	timeout, counters bool
}

// list returns what is known of a set, or nil if there is none.
func (s *sets) list(name string) (*setHeader, error) {
	var h *setHeader
	headerOnly := attributes{}.with(nl.IPSET_ATTR_FLAGS|unix.NLA_F_NET_BYTEORDER, be32(listHeader))
	err := s.dump(name, headerOnly, func(typ uint16, data []byte) {
		if h == nil {
			h = &setHeader{}
		}
		h.read(typ, data)
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list ipset %s: %w", name, explainSet(err))
	}
	return h, nil
}

// listHeader is IPSET_FLAG_LIST_HEADER in linux/netfilter/ipset/ip_set.h.
const listHeader = 1 << 2

func (h *setHeader) read(typ uint16, data []byte) {
	switch {
	case typ == nl.IPSET_ATTR_TYPENAME:
		h.typename = unix.ByteSliceToString(data) // to the end, where no NUL ends it
	case typ == nl.IPSET_ATTR_FAMILY && len(data) > 0:
		h.family = data[0]
	case typ == nl.IPSET_ATTR_DATA:
		eachAttribute(data, h.readData)
	}
}

func (h *setHeader) readData(typ uint16, data []byte) {
	if len(data) != 4 {
		return
	}
	switch n := binary.BigEndian.Uint32(data); typ {
	case nl.IPSET_ATTR_MAXELEM:
		h.maxElem = n
	case nl.IPSET_ATTR_HASHSIZE:
		h.hashSize = n
	case nl.IPSET_ATTR_ELEMENTS:
		h.entries = n
	case nl.IPSET_ATTR_TIMEOUT:
		h.timeout = true
	case nl.IPSET_ATTR_CADT_FLAGS:
		h.counters = n&nl.IPSET_FLAG_WITH_COUNTERS != 0
	}
}

// each calls f for each entry of a set.
func (s *sets) each(name string, f func(entry)) error {
	err := s.dump(name, nil, func(typ uint16, data []byte) {
		if typ != nl.IPSET_ATTR_ADT {
			return
		}
		eachAttribute(data, func(_ uint16, data []byte) {
			var e entry
			eachAttribute(data, e.read)
			f(e)
		})
	})
	if err != nil {
		return fmt.Errorf("read ipset %s: %w", name, explainSet(err))
	}
	return nil
}

func (e *entry) read(typ uint16, data []byte) {
	switch {
	case typ == nl.IPSET_ATTR_IP:
		e.addr = addrIn(data)
	case typ == nl.IPSET_ATTR_IP2:
		e.dst = addrIn(data)
	case typ == nl.IPSET_ATTR_CIDR && len(data) > 0:
		e.bits = data[0]
	case typ == nl.IPSET_ATTR_PROTO && len(data) > 0:
		e.protocol = data[0]
	case typ == nl.IPSET_ATTR_PORT && len(data) == 2:
		e.port = binary.BigEndian.Uint16(data)
	case typ == nl.IPSET_ATTR_CADT_FLAGS && len(data) == 4:
		e.nomatch = binary.BigEndian.Uint32(data)&nl.IPSET_FLAG_NOMATCH != 0
	}
}

// addrIn reads the address nested in an attribute.
func addrIn(data []byte) (a netip.Addr) {
	eachAttribute(data, func(_ uint16, data []byte) { a, _ = netip.AddrFromSlice(data) })
	return a
}

// dump asks for a set.
func (s *sets) dump(name string, more attributes, each func(typ uint16, data []byte)) error {
	return s.execute(nl.IPSET_CMD_LIST, unix.NLM_F_ACK|unix.NLM_F_DUMP, setNamed(name, more), func(attrs []byte) error {
		eachAttribute(attrs, each)
		return nil
	})
}

// add adds an entry or, if there is one for the same prefix, makes it match or
// not, which is one store of a flag to the packets that look meanwhile.
func (s *sets) add(name string, e entry) error {
	if err := s.execute(nl.IPSET_CMD_ADD, unix.NLM_F_ACK, setNamed(name, e.attributes()), nil); err != nil {
		return fmt.Errorf("add %v to ipset %s: %w", e, name, explainSet(err))
	}
	return nil
}

// remove removes an entry; one that is not there is as well.
func (s *sets) remove(name string, e entry) error {
	if err := s.execute(nl.IPSET_CMD_DEL, unix.NLM_F_ACK, setNamed(name, e.attributes()), nil); err != nil {
		return fmt.Errorf("remove %v from ipset %s: %w", e, name, explainSet(err))
	}
	return nil
}

func (e entry) String() string {
	switch {
	case e.dst.IsValid():
		return fmt.Sprintf("%v,%d:%d,%v", e.addr, e.protocol, e.port, e.dst)
	case e.nomatch:
		return fmt.Sprintf("%v nomatch", e.prefix())
	}
	return e.prefix().String()
}

func setNamed(name string, more attributes) attributes {
	attrs := attributes{}.
		with(nl.IPSET_ATTR_PROTOCOL, []byte{nl.IPSET_PROTOCOL}).
		with(nl.IPSET_ATTR_SETNAME, append([]byte(name), 0))
	return append(attrs, more...)
}

// attributes are the entry as the kernel wants it in a request.
func (e entry) attributes() attributes {
	data := attributes{}.with(nl.IPSET_ATTR_IP|unix.NLA_F_NESTED, addrAttribute(e.addr))
	if e.dst.IsValid() {
		data = data.with(nl.IPSET_ATTR_PROTO, []byte{e.protocol}).
			with(nl.IPSET_ATTR_PORT|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint16(nil, e.port)).
			with(nl.IPSET_ATTR_IP2|unix.NLA_F_NESTED, addrAttribute(e.dst))
	} else {
		data = data.with(nl.IPSET_ATTR_CIDR, []byte{e.bits})
	}
	if e.nomatch {
		data = data.with(nl.IPSET_ATTR_CADT_FLAGS|unix.NLA_F_NET_BYTEORDER, be32(nl.IPSET_FLAG_NOMATCH))
	}
	data = data.with(nl.IPSET_ATTR_LINENO|unix.NLA_F_NET_BYTEORDER, be32(0))
	return attributes{}.with(nl.IPSET_ATTR_DATA|unix.NLA_F_NESTED, data)
}

func addrAttribute(a netip.Addr) attributes {
	typ := uint16(nl.IPSET_ATTR_IPADDR_IPV6)
	if a.Is4() {
		typ = nl.IPSET_ATTR_IPADDR_IPV4
	}
	return attributes{}.with(typ|unix.NLA_F_NET_BYTEORDER, a.AsSlice())
}

// execute sends an ipset request. Errors of ipset's own have numbers beyond
// those of the system.
func (s *sets) execute(cmd, flags uint16, attrs attributes, each func(attrs []byte) error) error {
	err := s.conn.execute(unix.NFNL_SUBSYS_IPSET<<8|cmd, flags, unix.AF_INET, attrs, each)
	var errno unix.Errno
	if errors.As(err, &errno) && errno >= nl.IPSET_ERR_PRIVATE {
		return nl.IPSetError(errno)
	}
	return err
}
