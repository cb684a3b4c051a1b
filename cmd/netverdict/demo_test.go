package main

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/netverdict/netverdict/engine/flow"
	"github.com/netverdict/netverdict/kube"
	"github.com/netverdict/netverdict/policy"
)

// loadSteps loads a story's manifests as they are in its n-th step.
func loadSteps(t *testing.T, s *story, n int) *policy.Snapshot {
	t.Helper()
	dir := t.TempDir()
	for _, step := range s.steps[:n+1] {
		if err := step.writeManifests(dir); err != nil {
			t.Fatal(err)
		}
	}
	snapshot, report, err := kube.Load(dir, kube.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Notices) > 0 {
		t.Errorf("story %s: loading noticed %v", s.key, report.Notices)
	}
	return snapshot
}

// addrsOf maps the names of a story's pods and outsiders to their addresses.
func addrsOf(s *story, snapshot *policy.Snapshot) map[string]netip.Addr {
	all := map[string]netip.Addr{}
	pick := func(name string, addrs []netip.Addr) {
		i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is6() == s.overIPv6 })
		all[name] = addrs[i]
	}
	for _, p := range snapshot.Pods {
		pick(p.String(), p.Addrs)
	}
	for _, o := range s.outside {
		pick(o.name, o.addrs)
	}
	return all
}

// TestDemoExpectations compares what the stories' authors expect with what the
// compiled tree decides.
func TestDemoExpectations(t *testing.T) {
	for _, s := range demoStories() {
		before := -1
		for n, step := range s.steps {
			snapshot := loadSteps(t, &s, n)
			tree, err := policy.Compile(snapshot)
			if err != nil {
				t.Fatal(err)
			}
			if now := tree.Stats().Policies; now == before || now != len(snapshot.Policies) {
				// The demo recognizes a new state by its number of policies.
				t.Errorf("story %s: step %d has %d policies, %d of which select a pod, the one before had %d", s.key, n+1, len(snapshot.Policies), now, before)
			} else {
				before = now
			}
			addrs := addrsOf(&s, snapshot)
			for _, c := range step.checks {
				src, dst := addrs[c.from], addrs[c.to]
				if !src.IsValid() || !dst.IsValid() {
					t.Fatalf("story %s: %s → %s: an end is not in the story", s.key, c.from, c.target())
				}
				d := tree.Decide(src, dst, c.protocol, c.port)
				if diff := cmp.Diff(c.want.text(), expectationOf(&d).text()); diff != "" {
					t.Errorf("story %s: %s → %s (-expected +decided):\n%s", s.key, c.from, c.target(), diff)
				}
			}
		}
	}
}

func expectationOf(d *policy.Decision) expectation {
	e := expectation{verdict: d.Verdict, direction: d.Direction}
	for _, p := range d.Outcome().IsolatedBy {
		e.isolatedBy = append(e.isolatedBy, p.String())
	}
	return e
}

// TestDemoStoriesAreComplete: what the issue demands of each story is there.
func TestDemoStoriesAreComplete(t *testing.T) {
	for _, s := range demoStories() {
		var checks []check
		for n, step := range s.steps {
			checks = append(checks, step.checks...)
			for _, p := range loadSteps(t, &s, n).Policies {
				if p.Annotations[description] == "" {
					t.Errorf("story %s: policy %s/%s does not say what it is for (annotation %s)", s.key, p.Namespace, p.Name, description)
				}
			}
		}
		has := func(v policy.Verdict, p policy.Protocol) bool {
			return slices.ContainsFunc(checks, func(c check) bool { return c.want.verdict == v && c.protocol == p })
		}
		if !has(policy.Allow, policy.TCP) || !has(policy.Deny, policy.TCP) {
			t.Errorf("story %s lacks an allowed or a denied HTTP request", s.key)
		}
		if slices.Contains([]string{"c", "d", "e"}, s.key) && (!has(policy.Allow, policy.UDP) || !has(policy.Deny, policy.UDP)) {
			t.Errorf("story %s lacks an allowed or a denied UDP request", s.key)
		}
	}
	if keys := storyKeys(demoStories()); keys != "a,b,c,d,e" {
		t.Errorf("stories %s, want a,b,c,d,e", keys)
	}
}

func TestChooseStories(t *testing.T) {
	for keys, want := range map[string]string{"": "a,b,c,d,e", "c": "c", "e,a": "a,e", "b,b": "b"} {
		var asked []string
		if keys != "" {
			asked = strings.Split(keys, ",")
		}
		got, err := chooseStories(demoStories(), asked)
		if err != nil || storyKeys(got) != want {
			t.Errorf("--story %q chooses %s, %v; want %s", keys, storyKeys(got), err, want)
		}
	}
	if _, err := chooseStories(demoStories(), []string{"a", "f"}); err == nil || !strings.Contains(err.Error(), "want some of a,b,c,d,e") {
		t.Errorf("--story a,f: %v, want an error that names the stories", err)
	}
}

// record makes the flow record of a denied check.
func record(c check, d policy.Direction, isolatedBy ...string) *flow.Line {
	srcNS, src, _ := strings.Cut(c.from, "/")
	dstNS, dst, _ := strings.Cut(c.to, "/")
	return &flow.Line{
		Time:        time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.Local),
		Verdict:     policy.Deny,
		Direction:   d,
		Reason:      policy.ReasonDefaultDeny,
		Protocol:    c.protocol,
		Source:      flow.Endpoint{IP: netip.MustParseAddr("10.0.0.1"), Namespace: srcNS, Pod: src},
		Destination: flow.Endpoint{IP: netip.MustParseAddr("10.0.0.2"), Port: c.port, Namespace: dstNS, Pod: dst},
		IsolatedBy:  isolatedBy,
	}
}

// rendered prints into a string, without colours, and checks the width.
func rendered(t *testing.T, print func(*screen)) string {
	t.Helper()
	var b bytes.Buffer
	print(newScreen(&b))
	checkWidth(t, b.String())
	return b.String()
}

func checkWidth(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 100 {
			t.Errorf("a line of %d columns:\n%s", n, line)
		}
	}
	if strings.Contains(text, "\x1b") {
		t.Error("colours, although this is no terminal")
	}
}

func TestDemoTable(t *testing.T) {
	opened := tcp("apps/app1", "apps/app3", 80).allowed()
	closed := tcp("apps/app2", "apps/app3", 8080).noIngress("apps/default-deny")
	allowed, denied := observation{verdict: policy.Allow}, observation{verdict: policy.Deny}
	results := []result{
		{opened, allowed, nil},
		{closed, denied, record(closed, policy.Ingress, "apps/default-deny")},
		{opened, denied, record(opened, policy.Egress, "apps/default-deny")},
		{opened, denied, nil},
		{closed, allowed, nil},
		{closed, denied, nil},
		{closed, denied, record(closed, policy.Egress, "apps/default-deny")},
		{closed, denied, record(closed, policy.Ingress, "apps/app3-from-app1", "apps/default-deny")},
		{closed, observation{trouble: errors.New("connection refused")}, nil},
	}
	got := rendered(t, func(out *screen) {
		printTable(out, results)
		var n tally
		n.count(results)
		printSummary(out, n, 12340*time.Millisecond)
		good := tally{}
		good.count(results[:2])
		printSummary(out, good, 12340*time.Millisecond)
	})
	want := `    from        to                  expected   observed
    apps/app1 → apps/app3:80/TCP    ✓ allowed  ✓ allowed
    apps/app2 → apps/app3:8080/TCP  ✗ denied   ✗ denied
    apps/app1 → apps/app3:80/TCP    ✓ allowed  ✗ denied   ◀ MISMATCH
      must be allowed; the flow log says denied by egress: isolated by apps/default-deny
    apps/app1 → apps/app3:80/TCP    ✓ allowed  ✗ denied   ◀ MISMATCH
      must be allowed, was denied
    apps/app2 → apps/app3:8080/TCP  ✗ denied   ✓ allowed  ◀ MISMATCH
      must be denied by ingress: isolated by apps/default-deny, was allowed
    apps/app2 → apps/app3:8080/TCP  ✗ denied   ✗ denied   ◀ MISMATCH
      denied, but the flow log has no record of it
    apps/app2 → apps/app3:8080/TCP  ✗ denied   ✗ denied   ◀ MISMATCH
      must be denied by ingress: isolated by apps/default-deny; the flow log says denied by egress:
          isolated by apps/default-deny
    apps/app2 → apps/app3:8080/TCP  ✗ denied   ✗ denied   ◀ MISMATCH
      must be denied by ingress: isolated by apps/default-deny; the flow log says denied by ingress:
          isolated by apps/app3-from-app1, apps/default-deny
    apps/app2 → apps/app3:8080/TCP  ✗ denied   ! failed   ◀ MISMATCH
      neither allowed nor denied: connection refused

 FAIL: 7 NOT AS EXPECTED   9 checks, 2 as expected; the flow log names the policies of 1 of 6
    denials; 12.3 s

PASS  2 checks, 2 as expected; the flow log names the policies of 1 of 1 denials; 12.3 s
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the table (-want +got):\n%s", diff)
	}
}

func TestDemoStoryPage(t *testing.T) {
	s := egress()
	snapshot := loadSteps(t, &s, 0)
	st := &stage{story: &s}
	toBank := record(tcp("shop/cart", "bank-staff", 8000), policy.Egress, "shop/allow-dns", "shop/cart-to-bank", "shop/deny-egress")
	toBank.Destination = flow.Endpoint{IP: netip.MustParseAddr("203.0.113.200"), Port: 8000}
	zero := 0
	dns := record(udp("shop/cart", "kube-system/coredns-1", 53), policy.Ingress)
	dns.Verdict, dns.Reason = policy.Allow, policy.ReasonNoPolicy
	dns.Egress = &flow.OutcomeJSON{Verdict: policy.Allow, Reason: policy.ReasonPolicy, Policy: "shop/allow-dns", Rule: &zero}
	dns.Ingress = &flow.OutcomeJSON{Verdict: policy.Allow, Reason: policy.ReasonNoPolicy}

	got := rendered(t, func(out *screen) {
		printTitle(out, &s)
		printCast(out, &s, snapshot)
		printPolicies(out, snapshot.Policies)
		for _, l := range []*flow.Line{toBank, dns, {Time: toBank.Time, Lost: 3}} {
			out.line(4, flowSpans(l, st.name)...)
		}
	})
	want := `
━━ c. Egress: nothing but DNS, and one network with an exception and a port range ━━━━━━━━━━━━━━━━━━
  pod      shop/cart              app=cart                10.244.4.1
  pod      shop/helper            k8s-app=kube-dns        10.244.4.2
  pod      kube-system/coredns-1  k8s-app=kube-dns        10.244.0.2
  pod      kube-system/coredns-2  k8s-app=kube-dns        10.244.0.3
  pod      kube-system/metrics    k8s-app=metrics-server  10.244.0.4
  outside  bank                   in the allowed network  203.0.113.10
  outside  bank-staff             in its exception        203.0.113.200
  outside  elsewhere              in another network      198.51.100.7
  policy  shop/deny-egress   no pod may send, unless another policy allows it
  policy  shop/allow-dns     all pods may ask kube-system's DNS pods, UDP and TCP port 53
  policy  shop/cart-to-bank  cart may connect to the bank but its upper half, ports 8000–8010
    03:04:05.006 shop/cart → bank-staff:8000/TCP DENY egress: isolated by shop/allow-dns,
        shop/cart-to-bank, shop/deny-egress
    03:04:05.006 shop/cart → kube-system/coredns-1:53/UDP ALLOW egress: shop/allow-dns rule 0;
        ingress: no-policy
    03:04:05.006 3 flow records were lost
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the page (-want +got):\n%s", diff)
	}
}

// TestDemoFits prints what can be printed of every story.
func TestDemoFits(t *testing.T) {
	for _, s := range demoStories() {
		text := rendered(t, func(out *screen) {
			printTitle(out, &s)
			for n, step := range s.steps {
				snapshot := loadSteps(t, &s, n)
				printCast(out, &s, snapshot)
				printPolicies(out, snapshot.Policies)
				var results []result
				for _, c := range step.checks {
					results = append(results, result{c, observation{verdict: policy.Deny}, record(c, c.want.direction, c.want.isolatedBy...)})
				}
				printTable(out, results)
			}
		})
		if lines := strings.Count(text, "\n"); lines < 10 {
			t.Errorf("story %s printed only %d lines", s.key, lines)
		}
		for line := range strings.Lines(text) {
			// The table must stay a table.
			if strings.Contains(line, " → ") && !strings.Contains(line, "✗ denied") {
				t.Errorf("story %s: a row of the table is too wide: %s", s.key, line)
			}
		}
	}
}

func TestScreenWraps(t *testing.T) {
	long := strings.Repeat("é", 250)
	got := rendered(t, func(out *screen) {
		out.text(4, "%s", long)
		out.text(2, "%s %s", strings.Repeat("a", 97), strings.Repeat("b", 97))
		out.text(0, "%s %s", strings.Repeat("c", 100), "d")
	})
	want := "    " + strings.Repeat("é", 96) + "\n        " + strings.Repeat("é", 92) + "\n        " + strings.Repeat("é", 62) + "\n" +
		"  " + strings.Repeat("a", 97) + "\n      " + strings.Repeat("b", 94) + "\n      bbb\n" +
		strings.Repeat("c", 100) + "\n    d\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestScreenColours(t *testing.T) {
	var b bytes.Buffer
	out := newScreen(&b)
	out.coloured = true
	out.line(0, span{"plain ", plain}, span{"red and ", red}, span{"more", red})
	if got, want := b.String(), "plain \x1b[31mred and more\x1b[0m\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestScreenRemembersFailure(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	out := newScreen(w)
	out.blank()
	if err := out.failure(); err != nil {
		t.Fatalf("printing to an open pipe: %v", err)
	}
	r.Close()
	out.blank()
	if err := out.failure(); err == nil || !strings.Contains(err.Error(), "broken pipe") {
		t.Errorf("printing to a closed pipe: %v, want broken pipe", err)
	}
}

func TestEnforces(t *testing.T) {
	for line, want := range map[string]bool{
		`time=2026-01-02T03:04:05Z level=INFO msg=enforcing policies=3 addresses=6 pid=12`:                           true,
		`time=2026-01-02T03:04:05Z level=INFO msg="enforcing a new state" policies=3 addresses=6 revokes=false`:      true,
		`time=2026-01-02T03:04:05Z level=INFO msg="enforcing a new state" policies=33 addresses=6`:                   false,
		`time=2026-01-02T03:04:05Z level=INFO msg=enforcing policies=1 addresses=3 pid=3`:                            false,
		`time=2026-01-02T03:04:05Z level=ERROR msg="the last good policies stay in force" error="enforcing 3 rules"`: false,
	} {
		if got := enforces(line, 3); got != want {
			t.Errorf("enforces 3 policies: %v, want %v:\n%s", got, want, line)
		}
	}
}
