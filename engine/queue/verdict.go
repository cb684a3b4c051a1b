package queue

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Sizes in bytes of one verdict message: nlmsghdr, nfgenmsg, NFQA_VERDICT_HDR
// with struct nfqnl_msg_verdict_hdr, and NFQA_MARK when the mark is set. All
// are multiples of the alignment, so messages follow each other without gaps.
const (
	sizeofVerdict = sizeofNlmsghdr + sizeofNfgenmsg + sizeofNlattr + 8
	sizeofMark    = sizeofNlattr + 4
	maxVerdict    = sizeofVerdict + sizeofMark
)

// answers is the buffer in which verdict messages gather until they are sent.
type answers struct {
	num    uint16 // queue number
	buf    []byte // len is what is used, cap never changes
	counts [actions]uint64
}

func newAnswers(num uint16, capacity int) answers {
	return answers{num: num, buf: make([]byte, 0, capacity*maxVerdict)}
}

func (a *answers) full() bool  { return cap(a.buf)-len(a.buf) < maxVerdict }
func (a *answers) empty() bool { return len(a.buf) == 0 }

func (a *answers) reset() {
	a.buf = a.buf[:0]
	a.counts = [actions]uint64{}
}

// add appends one answer, which is not Hold; the buffer must not be full.
func (a *answers) add(id uint32, ans Answer) {
	verdict := uint32(nfDrop)
	switch ans.Action {
	case Accept:
		verdict = nfAccept
	case Repeat:
		verdict = nfRepeat
	default:
		ans.Action = Drop
	}
	a.counts[ans.Action]++
	a.put(msgVerdict, id, verdict, ans.SetMark, ans.Mark)
}

// put appends one message. It carries neither NLM_F_ACK, as an acknowledgement
// would cost as much as another packet, nor a sequence number, as the kernel's
// complaints about verdicts are only counted.
func (a *answers) put(typ uint16, id, verdict uint32, setMark bool, mark uint32) {
	size := sizeofVerdict
	if setMark {
		size = maxVerdict
	}
	n := len(a.buf)
	a.buf = a.buf[:n+size]
	b := a.buf[n : n+size]

	binary.NativeEndian.PutUint32(b[0:], uint32(size))
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint64(b[8:], 0) // nlmsg_seq, nlmsg_pid

	b[16] = unix.AF_UNSPEC
	b[17] = unix.NFNETLINK_V0
	binary.BigEndian.PutUint16(b[18:], a.num) // res_id

	binary.NativeEndian.PutUint16(b[20:], sizeofNlattr+8)
	binary.NativeEndian.PutUint16(b[22:], attrVerdictHdr)
	binary.BigEndian.PutUint32(b[24:], verdict)
	binary.BigEndian.PutUint32(b[28:], id)

	if setMark {
		binary.NativeEndian.PutUint16(b[32:], sizeofNlattr+4)
		binary.NativeEndian.PutUint16(b[34:], attrMark)
		binary.BigEndian.PutUint32(b[36:], mark)
	}
}
