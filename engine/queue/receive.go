package queue

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// attrRoom is how many bytes of a packet message are not payload: headers and
// every attribute that the kernel sends without being asked (about 180 bytes;
// nfqnl_build_packet_message in net/netfilter/nfnetlink_queue.c), with room for
// those that later kernels will add.
const attrRoom = 512

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// receiver holds the buffers of one batch of datagrams.
type receiver struct {
	hdrs []mmsghdr
	iovs []unix.Iovec
	data []byte
	size int // of one buffer, in bytes
}

func newReceiver(batch int, copyRange uint32) *receiver {
	size := align(int(copyRange) + attrRoom)
	r := &receiver{
		hdrs: make([]mmsghdr, batch),
		iovs: make([]unix.Iovec, batch),
		data: make([]byte, batch*size),
		size: size,
	}
	for i := range r.hdrs {
		r.iovs[i].Base = &r.data[i*size]
		r.iovs[i].SetLen(size)
		r.hdrs[i].hdr.Iov = &r.iovs[i]
		r.hdrs[i].hdr.SetIovlen(1)
	}
	return r
}

// receive waits for a datagram, takes those that are there, up to a batch, and
// returns their number. The wait ends with EAGAIN at the socket's SO_RCVTIMEO.
func (r *receiver) receive(fd int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(&r.hdrs[0])), uintptr(len(r.hdrs)), unix.MSG_WAITFORONE, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// datagram returns the i-th datagram of the last receive. One that did not fit
// the buffer is cut; the message in it then claims more than there is.
func (r *receiver) datagram(i int) []byte {
	n := min(int(r.hdrs[i].len), r.size)
	return r.data[i*r.size : i*r.size+n : i*r.size+n]
}
