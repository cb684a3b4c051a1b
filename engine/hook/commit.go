package hook

import (
	"bytes"
	"io"
	"strconv"
)

// commit runs iptables-restore as apply does, but returns as soon as the rules are in
// force. The command may not have ended by then: release lets it.
//
// To commit to nf_tables takes a fraction of a millisecond, but to close the socket
// afterwards takes a grace period of the kernel, 10 to 20 ms, in which nobody else
// can commit (nft_rcv_nl_event in net/netfilter/nf_tables_api.c): two families that
// are switched at once would take it twice. So the commands keep their sockets until
// both have committed. They commit where they read COMMIT, and end where their input
// does: the end is held back, and the kernel says when the chain has new rules.
func (t *tables) commit(input, chain string) error {
	if t.backend != NFT || len(input) > pipeCapacity {
		return t.apply(input)
	}
	t.settle()
	watch, err := watchCommits(t.family, chain)
	if err != nil {
		return t.apply(input) // slower, and as good
	}
	return t.hold(input, watch)
}

// pipeCapacity is what a pipe takes before anybody reads (pipe(7)).
const pipeCapacity = 64 << 10

// held is a command whose rules are in force and that waits for the end of its input.
type held struct {
	input io.Closer
	ended <-chan error
}

func (t *tables) hold(input string, watch *commitWatch) error {
	cmd, end := t.command(t.restore, "--noflush", "-w", strconv.Itoa(t.pace.lockWait()))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		watch.Close()
		return t.restoreError(input, end(&stderr, err))
	}
	_, _ = io.WriteString(stdin, input) // a command that does not read all says why

	ended := make(chan error, 1)
	go func() {
		err := end(&stderr, cmd.Wait())
		watch.Close() // which waits for the kernel as the command does
		ended <- err
	}()
	committed := make(chan bool, 1)
	go func() { committed <- watch.await() }()
	select {
	case err = <-ended:
	case took := <-committed:
		if took {
			t.held = &held{stdin, ended}
			return nil
		}
		stdin.Close()
		err = <-ended
	}
	return t.restoreError(input, err)
}

// release lets a command end that commit held.
func (t *tables) release() {
	if t.held != nil {
		t.held.input.Close()
	}
}

// settle waits until it has. How it ends does not matter: its rules are in force.
func (t *tables) settle() {
	if t.held != nil {
		t.release()
		<-t.held.ended
		t.held = nil
	}
}
