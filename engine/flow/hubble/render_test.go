package hubble

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/policy"
)

// rendered is what a client gets of a record.
func rendered(t *testing.T, r flow.Record) *flowpb.Flow {
	t.Helper()
	k := newKeeper()
	s := newServer(t, Options{Version: "1.2.3"})
	f := s.render(&k.keep([]flow.Record{r})[0], 3, policyVerdictEvent)
	f.Uuid = ""
	return f
}

// TestRender compares a denied flow, field by field.
func TestRender(t *testing.T) {
	r := record(defaultDeny)
	r.Time = time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC).UnixNano()
	r.Decision.Egress = byRule
	want := &flowpb.Flow{}
	if err := protojson.Unmarshal([]byte(`{
		"time": "2026-03-04T05:06:07.000000008Z",
		"emitter": {"name": "Netverdict", "version": "1.2.3"},
		"verdict": "DROPPED", "drop_reason": 133, "drop_reason_desc": "POLICY_DENIED",
		"IP": {"source": "10.1.0.1", "destination": "10.1.0.2", "ipVersion": "IPv4"},
		"l4": {"TCP": {"source_port": 40000, "destination_port": 80, "flags": {"SYN": true}}},
		"source": {
			"cluster_name": "default", "namespace": "shop", "pod_name": "client-5d4f-x7k",
			"labels": ["k8s:app.kubernetes.io/part-of=web", "k8s:app=client", "k8s:io.kubernetes.pod.namespace=shop"],
			"workloads": [{"kind": "Deployment", "name": "client"}]
		},
		"destination": {
			"cluster_name": "default", "namespace": "default", "pod_name": "server",
			"labels": ["k8s:app=server", "k8s:io.kubernetes.pod.namespace=default"]
		},
		"Type": "L3_L4", "node_name": "node-1", "event_type": {"type": 5},
		"traffic_direction": "INGRESS", "is_reply": false,
		"egress_allowed_by": [{"kind": "NetworkPolicy", "namespace": "default", "name": "let-in", "revision": "7", "labels": ["netverdict.io/rule=2"]}],
		"ingress_denied_by": [
			{"kind": "NetworkPolicy", "namespace": "default", "name": "a", "revision": "7"},
			{"kind": "NetworkPolicy", "namespace": "default", "name": "b", "revision": "7"}
		],
		"policy_log": ["netverdict.io/egress=policy", "netverdict.io/ingress=default-deny"],
		"Summary": "TCP Flags: SYN; ingress default-deny by default/a, default/b"
	}`), want); err != nil {
		t.Fatal(err)
	}
	got := rendered(t, r)
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if rule, ok := Rule(got.GetEgressAllowedBy()[0]); rule != 2 || !ok {
		t.Errorf("rule %d, %t", rule, ok)
	}
	if _, ok := Rule(got.GetIngressDeniedBy()[0]); ok {
		t.Error("an isolating policy has a rule")
	}
	if got := Reason(got, policy.Ingress); got != policy.ReasonDefaultDeny {
		t.Errorf("reason %v", got)
	}
	if got := Reason(&flowpb.Flow{}, policy.Egress); got != policy.ReasonUnknown {
		t.Errorf("reason of a flow of Cilium: %v", got)
	}
}

// TestRenderKinds looks at what differs between kinds of flows.
func TestRenderKinds(t *testing.T) {
	all := flows()
	for name, want := range map[string]string{
		"allowed": "FORWARDED DROP_REASON_UNKNOWN INGRESS 0 0 TCP Flags: SYN; ingress policy default/let-in rule 2",
		"denied":  "DROPPED POLICY_DENIED INGRESS 0 0 TCP Flags: SYN; ingress default-deny by default/a, default/b",
		"audited": "AUDIT DROP_REASON_UNKNOWN INGRESS 0 0 TCP Flags: SYN; ingress default-deny by default/a, default/b, only audited",
		"egress":  "DROPPED POLICY_DENY EGRESS 0 0 TCP Flags: SYN; egress policy default/keep-out rule 1",
		"udp6":    "DROPPED POLICY_DENIED INGRESS 2 0 UDP; ingress default-deny by default/a, default/b",
		"ping":    "DROPPED POLICY_DENIED INGRESS 0 0 ICMP; ingress default-deny by default/a, default/b",
		"node":    "DROPPED POLICY_DENIED INGRESS 1 0 TCP Flags: SYN; ingress default-deny by default/a, default/b",
		"remote":  "DROPPED POLICY_DENIED INGRESS 6 0 TCP Flags: SYN; ingress default-deny by default/a, default/b",
		"unknown": "DROPPED NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION INGRESS 0 0 TCP Flags: SYN; ingress unknown-pod",
		"broken":  "DROPPED INVALID_PACKET_DROPPED EGRESS 0 0 malformed: truncated-header; egress malformed",
	} {
		f := rendered(t, all[name])
		got := strings.Join([]string{
			f.GetVerdict().String(), f.GetDropReasonDesc().String(), f.GetTrafficDirection().String(),
			number(f.GetSource().GetIdentity()), number(f.GetDestination().GetIdentity()), f.GetSummary(), //nolint:staticcheck // deprecated, and what hubble observe prints
		}, " ")
		if got != want {
			t.Errorf("%s: %s\nwant %s", name, got, want)
		}
	}
	if by := rendered(t, all["audited"]).GetIngressDeniedBy(); len(by) != 2 {
		t.Errorf("what would be denied would be by %v", by)
	}
	if l4 := rendered(t, all["broken"]).GetL4(); l4 != nil {
		t.Errorf("a malformed packet has %v", l4)
	}
	if l4 := rendered(t, all["ping"]).GetL4().GetICMPv4(); l4.GetType() != 8 {
		t.Errorf("a ping has %v", l4)
	}
	if got := rendered(t, all["world"]).GetSource().GetLabels(); len(got) != 1 || got[0] != "reserved:world" {
		t.Errorf("the world has %v", got)
	}
}

// TestRenderAudited: what passes only because it is audited is neither forwarded nor
// dropped to a client, and says who denies it.
func TestRenderAudited(t *testing.T) {
	r := flows()["denied"]
	r.Decision.Verdict, r.Decision.Audit = policy.Allow, true
	f := rendered(t, r)
	if f.GetVerdict() != flowpb.Verdict_AUDIT || f.GetDropReasonDesc() != flowpb.DropReason_DROP_REASON_UNKNOWN ||
		len(f.GetIngressDeniedBy()) != 2 || len(f.GetIngressAllowedBy()) != 0 || f.GetTrafficDirection() != flowpb.TrafficDirection_INGRESS {
		t.Errorf("%v", f)
	}
}

func number(id uint32) string { return string(rune('0' + id)) }

// TestSummaryIsBounded: a pod may be isolated by thousands of policies.
func TestSummaryIsBounded(t *testing.T) {
	o := &policy.Outcome{Reason: policy.ReasonDefaultDeny}
	for range 5000 {
		o.IsolatedBy = append(o.IsolatedBy, ref("p"))
	}
	f := rendered(t, record(o))
	if got := f.GetSummary(); !strings.HasSuffix(got, "default/p, default/p, default/p and 4997 more") { //nolint:staticcheck // deprecated, and what hubble observe prints
		t.Error(got)
	}
	if len(f.GetIngressDeniedBy()) != 5000 {
		t.Errorf("%d policies", len(f.GetIngressDeniedBy()))
	}
}

// TestHistoryKeepsNoTree: what is kept does not refer to what was given.
func TestHistoryKeepsNoTree(t *testing.T) {
	r := record(defaultDeny)
	k := newKeeper()
	events := k.keep([]flow.Record{r, r})
	e := events[0]
	if e.Names != nil || e.Decision.Ingress == defaultDeny || e.Decision.Ingress != events[1].Decision.Ingress {
		t.Error("an event refers to its tree, or has its outcome for itself")
	}
	if e.Decision.Egress.Reason != policy.ReasonNoPolicy {
		t.Error("the outcome is not the same")
	}
	if got := endOf(netip.Addr{}, town{}); got.kind != noEnd {
		t.Errorf("no address belongs to %v", got)
	}
	if got := endOf(clientAddr, nil); got.kind != worldEnd {
		t.Errorf("without names an address belongs to %v", got)
	}
}
