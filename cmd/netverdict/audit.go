package main

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/netverdict/netverdict/engine/audit"
	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// auditOptions are the flags of netverdict audit.
type auditOptions struct {
	manifests manifests
	pcap      string
	nodeName  string
	output    string
	color     string
}

func newAudit(e env) *cobra.Command {
	o := &auditOptions{}
	cmd := &cobra.Command{
		Use:   "audit -f DIR --pcap FILE",
		Short: "Say which flows of a packet capture a set of policies allows and denies",
		Long: `Say which flows of a packet capture (pcap or pcapng, also gzipped) a set of policies
allows and denies: one line for each flow that begins in the capture, then a summary
on standard error. Without a cluster and without privileges.

Judged are the first packet of each TCP and SCTP connection, ICMP queries, and the
first datagram of other flows; replies are not. Addresses are taken as they are in
the capture, so capture where no address translation lies between you and the pod,
or with tcpdump -i any on the pod's node: such a capture says which way each packet
went, and is judged as the node would, with the address behind the Service and the
source before masquerading. Every pod's policies apply, unless --node-name says for
which node to judge. What policies of a namespace with netverdict.io/mode: audit
deny has the verdict audit, and is no denial.

For live traffic see netverdict agent --mode audit.

Exit codes: 0 no flow would be denied, 2 some would, 1 could not find out.`,
		Example: `  tcpdump -i any -w capture.pcap ip or ip6
  netverdict audit -f manifests/ --pcap capture.pcap
  netverdict audit -f manifests/ --pcap capture.pcap.gz -o json | jq -r .verdict | sort | uniq -c`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return o.run(e) },
	}
	o.manifests.addFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.pcap, "pcap", "", "capture `file`, - for standard input (required)")
	f.StringVar(&o.nodeName, "node-name", "", "judge as the agent of this node does: its pods' policies alone; without a name, every pod's")
	f.StringVarP(&o.output, "output", "o", "text", "`format`: text or json")
	f.StringVar(&o.color, "color", "auto", "colour the text: auto, always or never")
	require(cmd, "pcap", "which capture is to be judged? - is standard input")
	return cmd
}

func (o *auditOptions) run(e env) error {
	p, err := newFlowPrinter(e.stdout, o.output, o.color)
	if err != nil {
		return err
	}
	if err := o.manifests.refuseStdinTwice("--pcap", o.pcap); err != nil {
		return err
	}
	tree, err := o.tree(e)
	if err != nil {
		return err
	}
	in, err := openInput(e, o.pcap)
	if err != nil {
		return err
	}
	defer in.Close()
	var seen auditSummary
	stats, err := audit.ReadFile(in, func(b audit.Begun) error {
		d := tree.Decide(b.Packet.Src, b.Packet.Dst, b.Packet.Protocol, b.Packet.DstPort)
		seen[d.Reported()]++
		line := flow.NewLine(audit.Record(&b.Packet, b.Time, d, tree, 0))
		return p.print(&line)
	})
	if err != nil {
		err = fmt.Errorf("%s: %w", o.pcap, err)
	}
	if err := errors.Join(err, p.flush()); err != nil {
		return err
	}
	seen.print(e.stderr, &stats)
	if seen[policy.Deny] > 0 {
		return errAnswerNo
	}
	return nil
}

// tree compiles the manifests for one node, or for all.
func (o *auditOptions) tree(e env) (*policy.Tree, error) {
	s, err := o.manifests.load(e)
	if err != nil {
		return nil, err
	}
	if o.nodeName != "" {
		if !hasNode(s, o.nodeName) {
			return nil, fmt.Errorf("--node-name %s: no Node of that name is in the manifests, and no pod runs there", o.nodeName)
		}
		s.Local = func(p *policy.Pod) bool { return p.NodeName == o.nodeName }
		s.LocalPodCIDRs = new(nodeOptions).ranges(o.nodeName, s.Nodes)
	}
	return o.manifests.compile(e, s)
}

func hasNode(s *policy.Snapshot, name string) bool {
	return slices.ContainsFunc(s.Nodes, func(n *policy.Node) bool { return n.Name == name }) ||
		slices.ContainsFunc(s.Pods, func(p *policy.Pod) bool { return p.NodeName == name })
}

// auditSummary counts flows by reported verdict.
type auditSummary [policy.Audit + 1]int

func (s *auditSummary) print(w io.Writer, stats *audit.FileStats) {
	fmt.Fprintf(w, "%d packets, %d flows: %d allowed, %d denied, %d audited\n",
		stats.Packets, stats.Flows, s[policy.Allow], s[policy.Deny], s[policy.Audit])
	for _, left := range []struct {
		n    int
		what string
	}{
		{stats.Older, "connections that began before the capture"},
		{stats.Malformed, "malformed packets and later fragments"},
		{stats.NotIP, "packets that are not IP, or of a link type that is not known"},
	} {
		if left.n > 0 {
			fmt.Fprintf(w, "not judged: %s: %d\n", left.what, left.n)
		}
	}
}
