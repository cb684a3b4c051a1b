package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"
)

// Reservation is a queue number that is bound and not used. No two sockets of a
// network namespace can have the same, it takes CAP_NET_ADMIN there, and the kernel
// gives it back when its process ends, however that ends: it is a lock that no
// unprivileged process can take or hold.
type Reservation struct{ nf *nfqueue.Nfqueue }

// Reserve binds a queue number in the network namespace of the calling thread. No
// rule may send packets to it. The errors are those of Open.
func Reserve(num uint16) (*Reservation, error) {
	table, _ := openProcTable()
	nf, err := nfqueue.Open(&nfqueue.Config{NfQueue: num})
	if err != nil {
		return nil, errors.Join(socketError(num, err), table.close())
	}
	command := mustMarshal([]netlink.Attribute{{Type: cfgCmd, Data: []byte{cfgCmdBind, 0, 0, 0}}})
	if err := bind(nf.Con, num, command, table); err != nil {
		return nil, errors.Join(err, nf.Close(), table.close())
	}
	return &Reservation{nf}, table.close()
}

// Release gives the number back.
func (r *Reservation) Release() error {
	if err := r.nf.Close(); err != nil {
		return fmt.Errorf("release a queue number: %w", err)
	}
	return nil
}

// ReservedFor is the queue number that stands for a name, one of the last 4096, far
// away from those that people choose.
func ReservedFor(name string) uint16 {
	h := fnv.New32a()
	h.Write([]byte(name))
	return 0xf000 | binary.BigEndian.Uint16(h.Sum(nil)[2:])&0x0fff
}
