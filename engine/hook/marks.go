package hook

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/netverdict/netverdict/policy"
)

// minMarkBits is one bit for the kind of mark, two for a verdict and at least two
// for a number: with one bit the number before the current one would also be the
// next.
const minMarkBits = 5

// Marks writes a verdict and a number into some bits of a mark: an epoch into
// the packet mark, a generation into the connection mark. One bit of the mask is
// the kind of mark: 1 in packet marks, 0 in connection marks. Of the others the
// two lowest say the verdict (01 allow, 10 deny, 00 none; see also Rejected), the rest holds the
// number, least significant bit first. The mask may have gaps.
//
// The kind keeps apart what is remembered of a connection and a verdict on a
// packet when somebody else copies one mark into the other (CONNMARK
// --restore-mark), which programs do with all bits.
//
// A mark with a verdict is never zero in our bits, whatever its number: number 0
// needs no special case. All marks are in host byte order.
type Marks struct {
	mask        uint32
	kind        uint32 // one bit
	packet      uint32 // what the kind is in these marks: kind or 0
	allow, deny uint32 // one bit each
	number      uint32 // the rest of mask
}

// NewMarks divides a mask of at least five bits for packet marks.
func NewMarks(mask uint32) (Marks, error) {
	m, err := divide(mask, lowest(mask))
	m.packet = m.kind
	return m, err
}

// connection divides a mask of at least five bits for connection marks. Of
// whichever bits the two masks share, the bit that is the kind of packet marks
// is the kind here as well: no connection mark ever has it.
func (m Marks) connection(mask uint32) (Marks, error) {
	if shared := m.kind & mask; shared != 0 {
		return divide(mask, shared)
	}
	return divide(mask, lowest(mask))
}

func divide(mask, kind uint32) (Marks, error) {
	if n := bits.OnesCount32(mask); n < minMarkBits {
		return Marks{}, fmt.Errorf("mark mask %#x has %d bits: want at least %d, one for the kind of mark, two for the verdict and two for a number",
			mask, n, minMarkBits)
	}
	m := Marks{mask: mask, kind: kind, allow: lowest(mask &^ kind)}
	m.deny = lowest(mask &^ (kind | m.allow))
	m.number = mask &^ (kind | m.allow | m.deny)
	return m, nil
}

func lowest(mask uint32) uint32 { return mask & -mask }

// Verdict returns the mark old with a verdict and a number in our bits; the
// other bits stay as they are. Of the number only the bits that fit are kept.
func (m Marks) Verdict(old uint32, v policy.Verdict, number uint32) uint32 {
	mark := old&^m.mask | m.packet | m.verdictBit(v)
	for at := m.number; at != 0; at &= at - 1 {
		if number&1 != 0 {
			mark |= lowest(at)
		}
		number >>= 1
	}
	return mark
}

// verdictBit returns the bit of a verdict; whatever is not Allow is denied.
func (m Marks) verdictBit(v policy.Verdict) uint32 {
	if v == policy.Allow {
		return m.allow
	}
	return m.deny
}

// Rejected returns the mark old with a verdict to deny that is not to be remembered
// for others of its kind, because each of them gets an answer: both bits are set.
func (m Marks) Rejected(old uint32) uint32 { return old&^m.mask | m.packet | m.allow | m.deny }

// Own returns the mark of packets that the agent sends itself: the kind, and no
// verdict.
func (m Marks) Own() uint32 { return m.packet }

// Decided reports whether a mark of this kind carries a verdict.
func (m Marks) Decided(mark uint32) bool {
	return mark&m.kind == m.packet && mark&(m.allow|m.deny) != 0
}

// Allows reports whether a mark of this kind carries the verdict Allow.
func (m Marks) Allows(mark uint32) bool {
	value, mask := m.carrying(policy.Allow)
	return mark&mask == value
}

// Clear returns the mark with our bits zero.
func (m Marks) Clear(mark uint32) uint32 { return mark &^ m.mask }

// Mask returns all our bits.
func (m Marks) Mask() uint32 { return m.mask }

// Numbers returns how many different numbers fit; the next after the last is 0.
func (m Marks) Numbers() uint32 { return 1 << bits.OnesCount32(m.number) }

// next returns the number after n.
func (m Marks) next(n uint32) uint32 { return (n + 1) & (m.Numbers() - 1) }

// numberIn reads the number of a mark.
func (m Marks) numberIn(mark uint32) (number uint32) {
	for at, i := m.number, 0; at != 0; at, i = at&(at-1), i+1 {
		if mark&lowest(at) != 0 {
			number |= 1 << i
		}
	}
	return number
}

// exactly is what iptables compares a mark with: this verdict, this number.
func (m Marks) exactly(v policy.Verdict, number uint32) string {
	return fmt.Sprintf("%#x/%#x", m.Verdict(0, v, number), m.mask)
}

// read is the inverse of exactly.
func (m Marks) read(text string, v policy.Verdict) (number uint32, ok bool) {
	value, mask, ok := strings.Cut(text, "/")
	if !ok {
		mask = "0xffffffff" // iptables leaves out a mask of all bits
	}
	mark, err := strconv.ParseUint(value, 0, 32)
	if err != nil {
		return 0, false
	}
	if ours, err := strconv.ParseUint(mask, 0, 32); err != nil || ours != uint64(m.mask) {
		return 0, false
	}
	number = m.numberIn(uint32(mark))
	return number, uint64(m.Verdict(0, v, number)) == mark
}

// anyNumber is what iptables compares a mark with: this verdict, any number.
func (m Marks) anyNumber(v policy.Verdict) string {
	value, mask := m.carrying(v)
	return fmt.Sprintf("%#x/%#x", value, mask)
}

// carrying returns what marks with a verdict are under a mask, whatever their
// number.
func (m Marks) carrying(v policy.Verdict) (value, mask uint32) {
	return m.packet | m.verdictBit(v), m.kind | m.allow | m.deny
}

// rejected and own are what iptables compares a packet mark with to find such marks.
func (m Marks) rejected() string { return m.bits(m.Rejected(0)) }
func (m Marks) own() string      { return m.bits(m.Own()) }

func (m Marks) bits(value uint32) string {
	return fmt.Sprintf("%#x/%#x", value, m.kind|m.allow|m.deny)
}

// decided is what iptables compares a packet mark with: it comes from a verdict.
func (m Marks) decided() string { return fmt.Sprintf("%#x/%#x", m.packet, m.kind) }

// cleared is the argument of --set-xmark that zeroes our bits.
func (m Marks) cleared() string { return fmt.Sprintf("0x0/%#x", m.mask) }
