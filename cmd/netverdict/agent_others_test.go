package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asStranger in the environment makes this test binary another user of the host, who
// tries to learn from an agent, and to disturb it. Its value is the agent's PID.
const asStranger = "NETVERDICT_TEST_STRANGER"

func init() {
	if pid := os.Getenv(asStranger); pid != "" {
		n, err := strconv.Atoi(pid)
		if err != nil || os.Geteuid() == 0 {
			fmt.Println("not a stranger:", os.Geteuid(), err)
			os.Exit(1)
		}
		os.Exit(stranger(n, os.Args[1:]))
	}
}

// attempts must all be refused. paths are the status and Hubble sockets and the flow
// log; stream is where the agent's flow records went before.
func attempts(pid int, paths []string) map[string]func() error {
	proc := func(file string) string { return fmt.Sprintf("/proc/%d/%s", pid, file) }
	list := map[string]func() error{
		"send it a signal": func() error { return syscall.Kill(pid, syscall.SIGTERM) },
		"trace it":         func() error { return syscall.PtraceAttach(pid) },
		"bind its queue":   bindQueue,
		"list its sets":    listSets,
	}
	for _, file := range []string{"mem", "environ", "maps", "fd", "stack", "syscall"} {
		list["read /proc/PID/"+file] = func() error { return readSome(proc(file)) }
	}
	for _, file := range []string{"fd/1", "fd/2"} {
		list["read /proc/PID/"+file] = func() error { return readSome(proc(file)) }
	}
	for _, path := range paths {
		list["connect to "+filepath.Base(path)] = func() error { return dial(path) }
		list["read "+filepath.Base(path)] = func() error { return readSome(path) }
		list["remove "+filepath.Base(path)] = func() error { return os.Remove(path) }
		list["replace "+filepath.Base(path)] = func() error {
			return os.WriteFile(filepath.Join(filepath.Dir(path), "mine"), nil, 0o600)
		}
	}
	return list
}

func stranger(pid int, paths []string) int {
	failed := 0
	for what, attempt := range attempts(pid, paths) {
		err := attempt()
		if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ECONNREFUSED) && strings.Contains(what, "flows.jsonl") {
			continue
		}
		fmt.Printf("%s: %v, want to be refused\n", what, err)
		failed++
	}
	fmt.Println(len(attempts(pid, paths)), "attempts")
	return min(failed, 1)
}

func readSome(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		_, err = f.ReadDir(1)
		return err
	}
	_, err = f.Read(make([]byte, 1))
	return err
}

func dial(path string) error {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
	}
	return err
}

// bindQueue asks for an NFQUEUE (linux/netfilter/nfnetlink_queue.h), as who wants to
// judge, or to see, its packets would.
func bindQueue() error {
	const subsystemQueue, messageConfig = 3, 2
	return netfilterRequest(subsystemQueue<<8|messageConfig, []byte{0, 0, 0x1f, 0x72})
}

// listSets asks for all ipsets (linux/netfilter/ipset/ip_set.h).
func listSets() error {
	const subsystemIPSet, commandList = 6, 7
	return netfilterRequest(subsystemIPSet<<8|commandList, []byte{unix.AF_INET, 0, 0, 0, 5, 0, 1, 0, 6, 0, 0, 0})
}

// netfilterRequest sends a request and returns the kernel's error.
func netfilterRequest(kind uint16, body []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	length := byte(16 + len(body))
	message := append([]byte{length, 0, 0, 0, byte(kind), byte(kind >> 8), unix.NLM_F_REQUEST | unix.NLM_F_ACK, 0, 1, 0, 0, 0, 0, 0, 0, 0}, body...)
	if err := unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < 20 || answer[4] != unix.NLMSG_ERROR {
		return fmt.Errorf("an answer of %d bytes", n)
	}
	if code := int32(uint32(answer[16]) | uint32(answer[17])<<8 | uint32(answer[18])<<16 | uint32(answer[19])<<24); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

// Other users of the host can neither read flows nor talk to the agent: not by its
// sockets, files, process or netfilter. What the health and metrics ports tell is for
// everybody who reaches them, so it must be no more than that.
func TestOtherUsers(t *testing.T) {
	l := newAgentLab(t)
	l.serve(l.server, 80)
	l.write("policy.yaml", policyFor("client", "server"))
	dir := t.TempDir()
	for d := dir; strings.HasPrefix(d, os.TempDir()) && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil { // so that it is the agent's files that refuse
			t.Fatal(err)
		}
	}
	run := filepath.Join(dir, "run")
	paths := []string{filepath.Join(run, "agent.sock"), filepath.Join(run, "hubble.sock"), filepath.Join(dir, "flows.jsonl")}
	a := l.agent("--node-name=node-1", "--status-socket="+paths[0], "--hubble-socket="+paths[1], "--flow-log-file="+paths[2], "--flow-log=all",
		"--health-address=127.0.0.1:8051", "--metrics-address=127.0.0.1:8052")
	l.expect("allowed", true, l.client, l.server, 80)
	l.expect("denied", false, l.other, l.server, 80)
	for deadline := time.Now().Add(agentPatience); ; time.Sleep(20 * time.Millisecond) {
		if logged, err := os.ReadFile(paths[2]); err == nil && strings.Contains(string(logged), "shop") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no flow was logged")
		}
	}
	cmd := asNobody(t, l.command(paths...))
	cmd.Env = append(os.Environ(), asStranger+"="+fmt.Sprint(a.cmd.Process.Pid))
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("another user: %v", err)
	}
	if _, err := askStatus(t.Context(), paths[0]); err != nil {
		t.Errorf("and its own user is refused as well: %v", err)
	}
	for url, secret := range map[string]bool{
		"http://127.0.0.1:8051/healthz": true, "http://127.0.0.1:8051/readyz": true,
		"http://127.0.0.1:8051/status": true, "http://127.0.0.1:8051/debug/pprof/": true, "http://127.0.0.1:8052/metrics": false,
	} {
		text := l.get(url)
		for _, word := range []string{"10.1.0.1", "fd00:1::1", "client", "other"} { // of pods and flows
			if strings.Contains(strings.ReplaceAll(text, "client-to-server", ""), word+"\"") || secret && strings.Contains(text, word) {
				t.Errorf("%s tells everybody on the host of %s:\n%s", url, word, text)
			}
		}
	}
	a.terminate()
}

// get is what anybody on the node gets.
func (l *agentLab) get(url string) (text string) {
	l.t.Helper()
	client := http.Client{Timeout: agentPatience, Transport: &http.Transport{DialContext: l.node.DialContext}}
	defer client.CloseIdleConnections()
	resp, err := client.Get(url)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return string(body)
}
