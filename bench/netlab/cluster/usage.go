//go:build linux

package cluster

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is what a process takes, as /proc tells it.
type Usage struct {
	Resident        uint64        // bytes in memory now: VmRSS
	ResidentHighest uint64        // VmHWM
	CPU             time.Duration // user and system, of all threads since the start
	Threads         int
	Files           int // open descriptors
}

// clockTick is the unit of times in /proc: USER_HZ is 100 for programs on all
// architectures that Go runs on.
const clockTick = 10 * time.Millisecond

// Usage reads what the agent takes.
func (a *Agent) Usage() (Usage, error) {
	u, err := usageOf(a.Pid())
	if err != nil {
		return u, fmt.Errorf("what %s takes: %w", a.Name, err)
	}
	return u, nil
}

func usageOf(pid int) (u Usage, err error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return u, err
	}
	u.Resident, u.ResidentHighest = kibibytes(status, "VmRSS"), kibibytes(status, "VmHWM")
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return u, err
	}
	// proc_pid_stat(5): the name in parentheses may contain anything; utime, stime and
	// num_threads are fields 14, 15 and 20, the first after it is 3.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, i := range []int{14, 15} {
		ticks, err := strconv.ParseInt(fields[i-3], 10, 64)
		if err != nil {
			return u, err
		}
		u.CPU += time.Duration(ticks) * clockTick
	}
	if u.Threads, err = strconv.Atoi(fields[20-3]); err != nil {
		return u, err
	}
	open, err := os.ReadDir(dir + "fd")
	u.Files = len(open)
	return u, err
}

// kibibytes reads a field of proc_pid_status(5) in bytes, 0 if there is none.
func kibibytes(status []byte, field string) uint64 {
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			if f := strings.Fields(value); len(f) > 0 {
				n, _ := strconv.ParseUint(f[0], 10, 64) // the kernel wrote it
				return n << 10
			}
		}
	}
	return 0
}
