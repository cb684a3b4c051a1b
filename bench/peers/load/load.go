// Package load makes and takes the traffic of the benchmarks: programs that run
// in a network namespace, as processes of their own, and say in one line of JSON
// what they did.
//
// They must not be what limits the measured rates, so they are C in Go: raw
// system calls on locked threads, nothing allocated, and a runtime that leaves
// them alone (Environ).
package load

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Environ is what a process needs that runs one of these programs with so many
// threads. They block in raw system calls, of which the Go scheduler knows
// nothing: each holds a P for good, the collector would wait for them for ever,
// and preemption signals would interrupt them.
func Environ(threads int) []string {
	return append(os.Environ(), "GOGC=off", "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS="+strconv.Itoa(threads+2))
}

// Connected is what Connect says.
type Connected struct {
	Connects int           `json:"connects"`
	Failed   int           `json:"failed"`
	Elapsed  time.Duration `json:"elapsed"`
}

// Latencies is what Latency says; times are of connect(2) alone.
type Latencies struct {
	Connects int           `json:"connects"`
	Failed   int           `json:"failed"`
	P50      time.Duration `json:"p50"`
	P99      time.Duration `json:"p99"`
}

// Sent is what Send says.
type Sent struct {
	Packets int           `json:"packets"`
	Elapsed time.Duration `json:"elapsed"`
}

// Streamed is what Stream says.
type Streamed struct {
	Bytes   int64         `json:"bytes"`
	Elapsed time.Duration `json:"elapsed"`
}

// report prints a result for Parse.
func report(w io.Writer, result any) error {
	if err := json.NewEncoder(w).Encode(result); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// Parse reads what a program printed.
func Parse[T any](out []byte) (result T, err error) {
	if err = json.Unmarshal(out, &result); err != nil {
		err = fmt.Errorf("load program: %w in %q", err, out)
	}
	return result, err
}

// sockaddr4 is a struct sockaddr_in for raw system calls.
func sockaddr4(to netip.AddrPort) unix.RawSockaddrInet4 {
	port := to.Port()
	return unix.RawSockaddrInet4{
		Family: unix.AF_INET,
		Port:   port<<8 | port>>8, // network byte order on a little-endian machine
		Addr:   to.Addr().As4(),
	}
}
