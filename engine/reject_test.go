package engine

import (
	"testing"

	"github.com/netverdict/netverdict/engine/packet"
	"github.com/netverdict/netverdict/engine/queue"
	"github.com/netverdict/netverdict/policy"
)

// fakeRejecter takes so many packets.
type fakeRejecter struct {
	room  int
	asked int
}

func (r *fakeRejecter) Reject(*packet.Packet, []byte) bool {
	r.asked++
	r.room--
	return r.room >= 0
}

// TestWorkerRejects: by what the namespace says, else by what the engine is told;
// beyond the rate a denial is remembered.
func TestWorkerRejects(t *testing.T) {
	t.Parallel()
	denied := &queue.Packet{Payload: packetOf(t, ops4, db4, policy.TCP, tcpPort), Mark: foreign}
	allowed := &queue.Packet{Payload: packetOf(t, web4, db4, policy.TCP, tcpPort), Mark: foreign}
	for _, c := range []struct {
		name      string
		engine    policy.Denial
		namespace policy.Denial
		room      int
		rejected  bool
		asked     int
	}{
		{"both silent", policy.DenialDrop, policy.DenialUnset, 9, false, 0},
		{"the engine rejects", policy.DenialReject, policy.DenialUnset, 9, true, 1},
		{"the namespace rejects", policy.DenialDrop, policy.DenialReject, 9, true, 1},
		{"the namespace drops", policy.DenialReject, policy.DenialDrop, 9, false, 0},
		{"too many", policy.DenialReject, policy.DenialUnset, 0, false, 1},
	} {
		rejecter := &fakeRejecter{room: c.room}
		r := newRig(t, func(cfg *Config) { cfg.Rejecter, cfg.Deny = rejecter, c.engine })
		s := sceneSnapshot(allow("web", "db"))
		s.Namespaces = []*policy.Namespace{{Name: "shop", Denial: c.namespace}}
		w := r.judging(compile(t, s))
		want := r.marks.Verdict(foreign, policy.Deny, epoch)
		if c.rejected {
			want = r.marks.Rejected(foreign)
		}
		if a := w.Handle(denied); a != (queue.Answer{Action: queue.Repeat, SetMark: true, Mark: want}) {
			t.Errorf("%s: %+v, want mark %#x", c.name, a, want)
		}
		if a := w.Handle(allowed); a.Mark != r.marks.Verdict(foreign, policy.Allow, epoch) {
			t.Errorf("%s: allowed: %+v", c.name, a)
		}
		if w.Handle(&queue.Packet{Payload: truncated(t)}); rejecter.asked != c.asked {
			t.Errorf("%s: asked to answer %d times, want %d", c.name, rejecter.asked, c.asked)
		}
		around := &queue.Packet{Payload: denied.Payload, Mark: r.marks.Verdict(0, policy.Deny, 1)}
		if a := w.Handle(around); a.Action != queue.Drop {
			t.Errorf("%s: a packet that has been around: %+v", c.name, a)
		}
	}
}

// TestNoAllocsRejecting: being about to be answered costs no allocation either.
func TestNoAllocsRejecting(t *testing.T) {
	r := newRig(t, func(cfg *Config) {
		cfg.Rejecter, cfg.Deny = &fakeRejecter{room: 1 << 30}, policy.DenialReject
	})
	w := r.judging(sceneTree(t, isolate("db")))
	p := &queue.Packet{Payload: packetOf(t, ops4, db4, policy.TCP, tcpPort)}
	noAllocs(t, func() { w.Handle(p) })
}
