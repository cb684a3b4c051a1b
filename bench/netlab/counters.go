//go:build linux

package netlab

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// RepeatedSYNs is how many SYNs and answers to them the host's kernel has sent again
// because nothing came back for a second: a packet more each than there were
// connections, for who counts packets on a slow machine.
func (h *Host) RepeatedSYNs() (count uint64, err error) {
	err = h.Do(func() error {
		count, err = netstat("TCPSynRetrans")
		return err
	})
	return count, err
}

// netstat reads a counter of this thread's namespace (netstat_seq_show in
// net/ipv4/proc.c): a line of names is followed by one of values.
func netstat(name string) (uint64, error) {
	const file = "/proc/thread-self/net/netstat"
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines[:len(lines)-1] {
		names, values := strings.Fields(line), strings.Fields(lines[i+1])
		if at := slices.Index(names, name); at >= 0 && at < len(values) {
			return strconv.ParseUint(values[at], 10, 64)
		}
	}
	return 0, fmt.Errorf("no counter %s in %s", name, file)
}
