package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// idleWait bounds how long the loop waits for packets, and so how long it would
// take to notice a Wake whose message the kernel had no memory for.
const idleWait = time.Second

// Open binds a queue in the network namespace of the calling thread. From then
// on the kernel keeps the packets of the queue until Run reads them; until then
// it drops them, or lets them pass where the rule says --queue-bypass.
//
// The errors wrap ErrTaken, ErrPermission or ErrUnsupported.
func Open(cfg Config) (*Queue, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	q := &Queue{
		opened: time.Now(),
		cfg:    cfg,
		in:     newReceiver(cfg.Batch, cfg.CopyRange),
		out:    newAnswers(cfg.Num, cfg.Batch),
		done:   make(chan struct{}),
	}
	// Without the table the drop counters stay zero; that is no reason not to enforce.
	q.table, _ = openProcTable()
	if err := q.openSocket(); err != nil {
		return nil, errors.Join(err, q.table.close())
	}
	return q, nil
}

// openSocket has go-nfqueue open and configure the socket, and takes it over.
func (q *Queue) openSocket() error {
	nf, err := nfqueue.Open(&nfqueue.Config{NfQueue: q.cfg.Num})
	if err != nil {
		return socketError(q.cfg.Num, err)
	}
	defer nf.Close()
	if err := q.configure(nf.Con); err != nil {
		return err
	}
	if err := q.takeOver(nf.Con); err != nil {
		return fmt.Errorf("queue %d: take over the socket: %w", q.cfg.Num, err)
	}
	return nil
}

// configure makes the queue ours and live, in an order that no packet can
// disturb.
//
// Execute takes the first message it reads for the reply to its request; a
// packet that arrives before the reply would be lost and fail the start. The
// kernel hands no packet to a queue whose copy mode is still NFQNL_COPY_NONE
// (nfqnl_enqueue_packet), so everything else is set first, in the one message
// that is acknowledged. The copy mode comes last, is not acknowledged, and its
// failure, should there be one, ends Run.
func (q *Queue) configure(con *netlink.Conn) error {
	// With ENOBUFS on, each overrun costs a failed receive; the queue counts what
	// it dropped anyway.
	if err := con.SetOption(netlink.NoENOBUFS, true); err != nil {
		return fmt.Errorf("queue %d: set NETLINK_NO_ENOBUFS: %w", q.cfg.Num, err)
	}
	if err := control(con, q.setReceiveBuffer); err != nil {
		return fmt.Errorf("queue %d: set a receive buffer of %d bytes: %w", q.cfg.Num, q.cfg.ReceiveBuffer, err)
	}
	if err := bind(con, q.cfg.Num, q.cfg.bindAttributes(), q.table); err != nil {
		return err
	}
	sent, err := con.Send(configMessage(q.cfg.Num, 0, q.cfg.copyAttributes()))
	if err != nil {
		return fmt.Errorf("queue %d: set copy mode: %w", q.cfg.Num, err)
	}
	q.copySeq = sent.Header.Sequence
	return nil
}

func (q *Queue) setReceiveBuffer(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, q.cfg.ReceiveBuffer)
	if err == unix.EPERM { // then as much as net.core.rmem_max allows
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, q.cfg.ReceiveBuffer)
	}
	return err
}

// takeOver makes q.file a second descriptor of the socket; the caller closes
// the first. That one is registered with the Go runtime's poller, which wakes a
// thread for nothing when packets arrive. On two cores, medians of 15
// interleaved runs, sender included: 8.4 µs of processor time per packet and
// 175,000 packets/s with the registration, 7.2 µs and 236,000 without. Closing
// the first descriptor undoes it; the socket, with its queue, lives on in ours.
//
// Run waits inside recvmmsg, on a thread of its own, so the socket is set to
// block, up to a time. Under load poll(2) and recvmmsg measured the same within
// noise; a lone packet costs two system calls this way instead of three.
func (q *Queue) takeOver(con *netlink.Conn) error {
	wait := unix.NsecToTimeval(q.cfg.wait().Nanoseconds())
	return control(con, func(fd int) error {
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = errors.Join(
			unix.SetNonblock(own, false), // before NewFile, which would register it too
			unix.SetsockoptTimeval(own, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait))
		q.file = os.NewFile(uintptr(own), "nfqueue")
		if err == nil {
			q.raw, err = q.file.SyscallConn()
		}
		if err != nil {
			err = errors.Join(err, q.file.Close())
		}
		return err
	})
}

// wait is how long the loop may sleep in recvmmsg.
func (c *Config) wait() time.Duration {
	if c.Tick == 0 {
		return idleWait
	}
	return min(idleWait, c.Tick/2)
}

// control runs f on a descriptor, which cannot be closed meanwhile.
func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// configMessage is NFQNL_MSG_CONFIG: nfgenmsg, then attributes.
func configMessage(num uint16, flags netlink.HeaderFlags, attrs []byte) netlink.Message {
	data := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}
	binary.BigEndian.PutUint16(data[2:], num) // res_id
	return netlink.Message{
		Header: netlink.Header{Type: msgConfig, Flags: netlink.Request | flags},
		Data:   append(data, attrs...),
	}
}

// bindAttributes claim the queue and set all but its copy mode. A GSO packet is
// wanted whole: the kernel need not cut it, nor compute its checksums, to ask us
// about its headers.
func (c *Config) bindAttributes() []byte {
	flags := uint32(nfqueue.NfQaCfgFlagGSO)
	if c.FailOpen {
		flags |= nfqueue.NfQaCfgFlagFailOpen
	}
	const mask = nfqueue.NfQaCfgFlagGSO | nfqueue.NfQaCfgFlagFailOpen
	return mustMarshal([]netlink.Attribute{
		{Type: cfgCmd, Data: []byte{cfgCmdBind, 0, 0, 0}}, // nfqnl_msg_config_cmd: command, pad, pf
		{Type: cfgQueueMaxLen, Data: binary.BigEndian.AppendUint32(nil, c.MaxLen)},
		{Type: cfgMask, Data: binary.BigEndian.AppendUint32(nil, mask)},
		{Type: cfgFlags, Data: binary.BigEndian.AppendUint32(nil, flags)},
	})
}

// copyAttributes start the flow of packets: nfqnl_msg_config_params is the copy
// range and the copy mode, packed.
func (c *Config) copyAttributes() []byte {
	params := append(binary.BigEndian.AppendUint32(nil, c.CopyRange), nfqueue.NfQnlCopyPacket)
	return mustMarshal([]netlink.Attribute{{Type: cfgParams, Data: params}})
}

// mustMarshal encodes attributes, which fails only for ones of 64 KiB.
func mustMarshal(attrs []netlink.Attribute) []byte {
	b, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		panic(err)
	}
	return b
}

// bindAttempts is how often a refusal is questioned that looks like a missing
// capability: the kernel's answer is the same when another socket has the number,
// which may have let go of it before we could look.
const bindAttempts = 50

// bind asks for a queue number.
func bind(con *netlink.Conn, num uint16, attributes []byte, table *procTable) (err error) {
	for range bindAttempts {
		if _, err = con.Execute(configMessage(num, netlink.Acknowledge, attributes)); err == nil {
			return nil
		}
		if err = bindError(num, err, table); !errors.Is(err, ErrPermission) {
			return err
		}
	}
	return err
}
