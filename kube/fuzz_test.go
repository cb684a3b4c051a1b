package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/netverdict/netverdict/policy/validation"
)

// FuzzLoad: no input panics or takes long, and every problem says where it is.
// parseLimit tells what grows without bound from a machine that is slow and busy.
const parseLimit = 2 * time.Minute

func FuzzLoad(f *testing.F) {
	for _, tc := range loadCases {
		f.Add([]byte(tc.file))
	}
	dump, err := os.ReadFile("testdata/cluster.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(dump)
	f.Add([]byte(aliasBomb(9, "lol")))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<20 {
			t.Skip("larger than what the time bound is about")
		}
		start := time.Now()
		snapshot, report, err := parse(&reading{files: []file{{"fuzz.yaml", data}}})
		if took := time.Since(start); took > parseLimit {
			t.Errorf("%d bytes took %v", len(data), took)
		}
		if report == nil || (snapshot == nil) != (err != nil) {
			t.Fatalf("snapshot %v, report %v, error %v", snapshot, report, err)
		}
		if err != nil {
			checkProblems(t, err)
			return
		}
		for _, np := range snapshot.Policies {
			if errs := validation.NetworkPolicy(np); len(errs) > 0 {
				t.Errorf("the snapshot has a policy that is not valid: %v", errs)
			}
		}
	})
}

func checkProblems(t *testing.T, err error) {
	t.Helper()
	var le *LoadError
	if !errors.As(err, &le) {
		t.Fatalf("not a LoadError: %v", err)
	}
	if len(le.Problems) > maxProblems {
		t.Errorf("%d problems", len(le.Problems))
	}
	for _, p := range le.Problems {
		if !strings.HasPrefix(p.String(), "fuzz.yaml: ") || p.Text == "" {
			t.Errorf("problem without file or text: %q", p)
		}
		if strings.ContainsAny(p.String(), "\x00\x1b\r\n") {
			t.Errorf("unprintable: %q", p)
		}
	}
}

// aliasBomb is a document of the "billion laughs" kind.
func aliasBomb(levels int, leaf string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "a0: &a0 %q\n", leaf)
	for i := 1; i <= levels; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9), i-1)
	}
	return b.String()
}

func TestHostileInputIsBounded(t *testing.T) {
	for name, tc := range map[string]struct{ input, want string }{
		"alias bomb":             {aliasBomb(9, "lol"), "document contains excessive aliasing"},
		"alias bomb of few big":  {aliasBomb(2, strings.Repeat("x", 1<<16)), "the document grows beyond"},
		"alias in its own value": {"a: &a [*a]", "anchor 'a' value contains itself"},
		"deep flow":              {strings.Repeat("[", 20000), "exceeded max depth"},
		"deep mappings":          {strings.Repeat("{a: ", 20000), "not valid"},
		"deep JSON":              {strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat("}", 20000), "exceeded max depth"},
		"deep indentation":       {deepIndent(3000), "kind: Required value"},
		"deep lists":             {nestedLists(maxListDepth + 1), "Lists are nested more than 8 deep"},
		"long line":              {"a: " + strings.Repeat("b: ", 1<<18), "mapping values are not allowed"},
		"many anchors":           {manyAnchors(20000), "kind: Required value"},
		"huge value":             {policyYAML("a", `{policyTypes: ["`+strings.Repeat("x", 1<<20)+`"]}`), "Unsupported value"},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, _, err := parse(&reading{files: []file{{"fuzz.yaml", []byte(tc.input)}}})
			if took := time.Since(start); took > parseLimit {
				t.Errorf("took %v", took)
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %.300v, want %q", err, tc.want)
			}
			checkProblems(t, err)
			if len(err.Error()) > maxProblems*2*maxText {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

func deepIndent(levels int) string {
	var b strings.Builder
	for i := range levels {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func manyAnchors(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "k%d: &k%d v\n", i, i)
	}
	return b.String()
}

func nestedLists(levels int) string {
	return strings.Repeat("{apiVersion: v1, kind: List, items: [", levels) + strings.Repeat("]}", levels)
}

func TestFileSizeIsBounded(t *testing.T) {
	inDir(t, map[string]string{"big.yaml": "#"})
	if err := os.Truncate("big.yaml", maxFileSize+1); err != nil {
		t.Fatal(err)
	}
	_, _, err := Load("big.yaml", Options{})
	wantError(t, err, "big.yaml: more than 64 MiB; split it, or use JSON, which takes half as much")
}

// Whatever valid policy there is, writing it as kubectl would and loading it gives
// the same policy with the API's defaults, from YAML and from JSON.
func TestRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	dir := t.TempDir()
	var docs, jsonDocs strings.Builder
	var want []*networkingv1.NetworkPolicy
	for i := range 500 {
		np := randomPolicy(rng, fmt.Sprintf("p%d", i))
		if errs := validation.NetworkPolicy(np); len(errs) > 0 {
			t.Fatalf("the generator made a policy that is not valid: %v", errs)
		}
		want = append(want, validation.Default(np))
		y, err := yaml.Marshal(np)
		if err != nil {
			t.Fatal(err)
		}
		j, err := json.MarshalIndent(np, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		docs.WriteString("---\n" + string(y))
		jsonDocs.Write(j)
	}
	for file, content := range map[string]string{"a.yaml": docs.String(), "a.json": jsonDocs.String()} {
		path := filepath.Join(dir, file)
		write(t, path, content)
		got, _, err := Load(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got.Policies, want); diff != "" {
			t.Errorf("%s: got − want +:\n%s", file, diff)
		}
	}
}

func randomPolicy(rng *rand.Rand, name string) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{Kind: "NetworkPolicy", APIVersion: "networking.k8s.io/v1"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"},
	}
	np.Spec.PodSelector = *randomSelector(rng)
	for range rng.IntN(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{Ports: randomPorts(rng), From: randomPeers(rng)})
	}
	for range rng.IntN(3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{Ports: randomPorts(rng), To: randomPeers(rng)})
	}
	all := []networkingv1.PolicyType{"Ingress", "Egress"}
	np.Spec.PolicyTypes = [][]networkingv1.PolicyType{nil, all, all[:1], all[1:]}[rng.IntN(4)]
	return np
}

// values include what YAML takes for something else when it is not quoted.
var values = []string{"web", "yes", "null", "1", "0x10", "1e3", "1.0", "true", "2026-01-01", "a_b", ""}

func randomSelector(rng *rand.Rand) *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	for range rng.IntN(3) {
		if s.MatchLabels == nil {
			s.MatchLabels = map[string]string{}
		}
		s.MatchLabels["example.com/k"+fmt.Sprint(rng.IntN(3))] = values[rng.IntN(len(values))]
	}
	for range rng.IntN(2) {
		r := metav1.LabelSelectorRequirement{Key: "y", Operator: metav1.LabelSelectorOpExists}
		if rng.IntN(2) == 0 {
			r.Operator, r.Values = metav1.LabelSelectorOpNotIn, []string{values[rng.IntN(len(values))]}
		}
		s.MatchExpressions = append(s.MatchExpressions, r)
	}
	return s
}

func randomPorts(rng *rand.Rand) []networkingv1.NetworkPolicyPort {
	var ports []networkingv1.NetworkPolicyPort
	for range rng.IntN(4) {
		var p networkingv1.NetworkPolicyPort
		if i := rng.IntN(4); i < 3 {
			proto := []corev1.Protocol{"TCP", "UDP", "SCTP"}[i]
			p.Protocol = &proto
		}
		switch rng.IntN(4) {
		case 0:
			v := intstr.FromString("http-2")
			p.Port = &v
		case 1:
			v := intstr.FromInt32(1 + rng.Int32N(65535))
			p.Port = &v
		case 2:
			v := intstr.FromInt32(1 + rng.Int32N(1000))
			end := v.IntVal + rng.Int32N(1000)
			p.Port, p.EndPort = &v, &end
		}
		ports = append(ports, p)
	}
	return ports
}

func randomPeers(rng *rand.Rand) []networkingv1.NetworkPolicyPeer {
	var peers []networkingv1.NetworkPolicyPeer
	for range rng.IntN(4) {
		var p networkingv1.NetworkPolicyPeer
		switch rng.IntN(4) {
		case 0:
			p.PodSelector = randomSelector(rng)
		case 1:
			p.NamespaceSelector = randomSelector(rng)
		case 2:
			p.PodSelector, p.NamespaceSelector = randomSelector(rng), randomSelector(rng)
		case 3:
			p.IPBlock = &networkingv1.IPBlock{CIDR: "10.0.0.0/8"}
			if rng.IntN(2) == 0 {
				p.IPBlock = &networkingv1.IPBlock{CIDR: "::/0", Except: []string{"2001:db8::/32", "::1/128"}}
			}
		}
		peers = append(peers, p)
	}
	return peers
}
