//go:build linux

package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// Service is a virtual address on a node, as kube-proxy makes them in iptables
// mode: packets from hosts behind the node and from the node itself are sent on
// to one of the backends (DNAT in PREROUTING and OUTPUT).
type Service struct {
	node     *Node
	chain    string
	vip      netip.AddrPort
	proto    string
	backends []netip.AddrPort

	once sync.Once
	err  error
}

// AddService forwards vip:port of proto ("tcp", "udp" or "sctp") to backends,
// chosen at random for each connection. A backend that reaches itself through
// the service is masqueraded with the node's address, as kube-proxy does.
// The rules are made by the iptables command that the PATH has first.
func (n *Node) AddService(vip netip.Addr, port uint16, proto string, backends ...netip.AddrPort) (*Service, error) {
	s := &Service{node: n, vip: netip.AddrPortFrom(vip, port), proto: proto, backends: backends}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("node %s: service %s/%s: %w", n.name, s.vip, proto, err)
	}
	n.lab.mu.Lock()
	n.services++
	s.chain = fmt.Sprintf("NETLAB-SVC-%d", n.services)
	n.lab.mu.Unlock()
	if err := s.restore(s.addRules()); err != nil {
		return nil, fmt.Errorf("node %s: add service %s/%s: %w", n.name, s.vip, proto, err)
	}
	return s, nil
}

func (s *Service) check() error {
	switch s.proto {
	case "tcp", "udp", "sctp":
	default:
		return errors.New("protocol: want tcp, udp or sctp")
	}
	if err := checkAddr(s.vip.Addr()); err != nil {
		return err
	}
	if len(s.backends) == 0 {
		return errors.New("no backends")
	}
	for _, b := range s.backends {
		if b.Addr().Is4() != s.vip.Addr().Is4() {
			return fmt.Errorf("backend %s is of another family", b)
		}
	}
	if !s.nodeAddr().IsValid() {
		return errors.New("the node has no address of that family")
	}
	return nil
}

func (s *Service) nodeAddr() netip.Addr {
	if s.vip.Addr().Is4() {
		return s.node.Addr4()
	}
	return s.node.Addr6()
}

// entries are the rules in built-in chains, without -A or -D.
func (s *Service) entries() []string {
	match := fmt.Sprintf("-d %s -p %s -m %s --dport %d -j %s", s.vip.Addr(), s.proto, s.proto, s.vip.Port(), s.chain)
	rules := []string{"PREROUTING " + match, "OUTPUT " + match}
	for _, b := range s.backends {
		// To itself: without a new source the backend would drop its own address as martian.
		rules = append(rules, fmt.Sprintf("POSTROUTING -s %s -d %s -p %s -m %s --dport %d -m conntrack --ctstate DNAT --ctorigdst %s -j SNAT --to-source %s",
			b.Addr(), b.Addr(), s.proto, s.proto, b.Port(), s.vip.Addr(), s.nodeAddr()))
	}
	return rules
}

func (s *Service) addRules() string {
	var b strings.Builder
	fmt.Fprintf(&b, "*nat\n:%s - [0:0]\n", s.chain)
	for i, backend := range s.backends {
		fmt.Fprintf(&b, "-A %s -p %s -m statistic --mode random --probability %.6f -j DNAT --to-destination %s\n",
			s.chain, s.proto, 1/float64(len(s.backends)-i), backend)
	}
	for _, e := range s.entries() {
		fmt.Fprintf(&b, "-A %s\n", e)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

func (s *Service) removeRules() string {
	var b strings.Builder
	b.WriteString("*nat\n")
	for _, e := range s.entries() {
		fmt.Fprintf(&b, "-D %s\n", e)
	}
	fmt.Fprintf(&b, "-F %s\n-X %s\nCOMMIT\n", s.chain, s.chain)
	return b.String()
}

// restore applies rules to the node's nat table in one transaction.
func (s *Service) restore(rules string) error {
	tool := "iptables-restore"
	if s.vip.Addr().Is6() {
		tool = "ip6tables-restore"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := s.node.Command(ctx, tool, "--noflush", "--wait", "10")
	cmd.Stdin = strings.NewReader(rules)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w (install it: apt-get install iptables)", err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", tool, err, bytes.TrimSpace(out))
	}
	return nil
}

// Remove removes the service's rules. Connections that it translated go on.
// The node's removal does it, too.
func (s *Service) Remove() error {
	s.once.Do(func() {
		err := s.restore(s.removeRules())
		if err != nil && !errors.Is(err, net.ErrClosed) {
			s.err = fmt.Errorf("node %s: remove service %s/%s: %w", s.node.name, s.vip, s.proto, err)
		}
	})
	return s.err
}
