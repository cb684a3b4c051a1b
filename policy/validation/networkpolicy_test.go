package validation

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// policyWith returns a policy with the given spec and otherwise valid.
func policyWith(t *testing.T, spec string) *networkingv1.NetworkPolicy {
	t.Helper()
	np := &networkingv1.NetworkPolicy{}
	np.Name, np.Namespace = "p", "default"
	if err := yaml.UnmarshalStrict([]byte(spec), &np.Spec); err != nil {
		t.Fatalf("bad test: %v", err)
	}
	return np
}

func messages(errs field.ErrorList) []string {
	out := []string{}
	for _, e := range errs {
		out = append(out, e.Error())
	}
	return out
}

// Each rule has a case that obeys it (no errors) and one that does not.
var specCases = []struct {
	name, spec string
	want       []string
}{
	{"empty spec", `{}`, nil},
	{"selector", `{podSelector: {matchLabels: {example.com/app: web}, matchExpressions: [{key: a, operator: In, values: [b, ""]}, {key: a, operator: NotIn, values: [b]}, {key: a, operator: Exists}, {key: a, operator: DoesNotExist}]}}`, nil},
	{"bad label key", `{podSelector: {matchLabels: {"a/b/c": web}}}`, []string{
		`spec.podSelector.matchLabels: Invalid value: "a/b/c": a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')`}},
	{"bad label value", `{podSelector: {matchLabels: {a: "-"}}}`, []string{
		`spec.podSelector.matchLabels: Invalid value: "-": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')`}},
	{"long label value", `{podSelector: {matchLabels: {a: ` + strings.Repeat("x", 64) + `}}}`, []string{
		`spec.podSelector.matchLabels: Invalid value: "` + strings.Repeat("x", 64) + `": must be no more than 63 bytes`}},
	{"bad value in expression", `{podSelector: {matchExpressions: [{key: a, operator: In, values: ["b c"]}]}}`, []string{
		`spec.podSelector.matchExpressions[0].values[0]: Invalid value: "b c": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')`}},
	{"unknown operator", `{podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}}`, []string{
		`spec.podSelector.matchExpressions[0].operator: Invalid value: "in": not a valid selector operator`}},
	{"In without values", `{podSelector: {matchExpressions: [{key: a, operator: In}]}}`, []string{
		"spec.podSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"}},
	{"Exists with values", `{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}`, []string{
		"spec.podSelector.matchExpressions[0].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"}},
	{"selectors of peers", `{ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: x}]}}]}], egress: [{to: [{namespaceSelector: {matchExpressions: [{key: a, operator: x}]}}]}]}`, []string{
		`spec.ingress[0].from[0].podSelector.matchExpressions[0].operator: Invalid value: "x": not a valid selector operator`,
		`spec.egress[0].to[0].namespaceSelector.matchExpressions[0].operator: Invalid value: "x": not a valid selector operator`}},

	{"policy types", `{policyTypes: [Egress, Ingress]}`, nil},
	{"same policy type twice", `{policyTypes: [Egress, Egress]}`, nil},
	{"unknown policy type", `{policyTypes: [ingress]}`, []string{
		`spec.policyTypes[0]: Unsupported value: "ingress": supported values: "Egress", "Ingress"`}},
	{"three policy types", `{policyTypes: [Egress, Ingress, Egress]}`, []string{
		`spec.policyTypes: Invalid value: ["Egress","Ingress","Egress"]: may not specify more than two policyTypes`}},

	{"ports", `{ingress: [{ports: [{}, {protocol: UDP}, {protocol: SCTP, port: 1}, {port: 65535}, {port: http}, {port: 80, endPort: 80}, {port: 1, endPort: 65535}]}]}`, nil},
	{"protocol without ports", `{ingress: [{ports: [{protocol: ICMP}]}]}`, []string{
		`spec.ingress[0].ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"`}},
	{"protocol in lower case", `{egress: [{}, {ports: [{}, {protocol: tcp}]}]}`, []string{
		`spec.egress[1].ports[1].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP"`}},
	{"empty protocol", `{egress: [{ports: [{protocol: ""}]}]}`, []string{
		`spec.egress[0].ports[0].protocol: Unsupported value: "": supported values: "SCTP", "TCP", "UDP"`}},
	{"port 0", `{egress: [{ports: [{port: 0}]}]}`, []string{
		`spec.egress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive`}},
	{"port 65536", `{egress: [{ports: [{port: 65536}]}]}`, []string{
		`spec.egress[0].ports[0].port: Invalid value: 65536: must be between 1 and 65535, inclusive`}},
	{"number in quotes", `{egress: [{ports: [{port: "80"}]}]}`, []string{
		`spec.egress[0].ports[0].port: Invalid value: "80": must contain at least one letter (a-z)`}},
	{"port name of 15", `{egress: [{ports: [{port: abcdefghijklmno}]}]}`, nil},
	{"port name of 16", `{egress: [{ports: [{port: abcdefghijklmnop}]}]}`, []string{
		`spec.egress[0].ports[0].port: Invalid value: "abcdefghijklmnop": must be no more than 15 characters`}},
	{"port name in upper case", `{egress: [{ports: [{port: HTTP}]}]}`, []string{
		`spec.egress[0].ports[0].port: Invalid value: "HTTP": must contain at least one letter (a-z)`,
		`spec.egress[0].ports[0].port: Invalid value: "HTTP": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)`}},
	{"port name with two hyphens", `{egress: [{ports: [{port: a--b}]}]}`, []string{
		`spec.egress[0].ports[0].port: Invalid value: "a--b": must not contain consecutive hyphens`}},
	{"empty port name", `{egress: [{ports: [{port: ""}]}]}`, []string{
		`spec.egress[0].ports[0].port: Invalid value: "": must contain at least one letter (a-z)`,
		`spec.egress[0].ports[0].port: Invalid value: "": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)`}},
	{"endPort below port", `{egress: [{ports: [{port: 80, endPort: 79}]}]}`, []string{
		"spec.egress[0].ports[0].endPort: Invalid value: 79: must be greater than or equal to `port`"}},
	{"endPort beyond the last", `{egress: [{ports: [{port: 80, endPort: 65536}]}]}`, []string{
		`spec.egress[0].ports[0].endPort: Invalid value: 65536: must be between 1 and 65535, inclusive`}},
	{"endPort without port", `{egress: [{ports: [{endPort: 80}]}]}`, []string{
		"spec.egress[0].ports[0].endPort: Invalid value: 80: may not be specified when `port` is not specified"}},
	{"endPort with name", `{egress: [{ports: [{port: http, endPort: 80}]}]}`, []string{
		"spec.egress[0].ports[0].endPort: Invalid value: 80: may not be specified when `port` is non-numeric"}},

	{"peers", `{ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}, {podSelector: {}, namespaceSelector: {}}, {ipBlock: {cidr: 0.0.0.0/0}}]}]}`, nil},
	{"empty peer", `{ingress: [{from: [{}]}]}`, []string{
		`spec.ingress[0].from[0]: Required value: must specify a peer`}},
	{"ipBlock and podSelector", `{egress: [{to: [{ipBlock: {cidr: "::/0"}, podSelector: {}}]}]}`, []string{
		`spec.egress[0].to[0]: Forbidden: may not specify both ipBlock and another peer`}},
	{"ipBlock and namespaceSelector", `{egress: [{to: [{ipBlock: {cidr: "::/0"}, namespaceSelector: {}}]}]}`, []string{
		`spec.egress[0].to[0]: Forbidden: may not specify both ipBlock and another peer`}},

	{"no cidr", `{egress: [{to: [{ipBlock: {except: [10.0.0.0/8]}}]}]}`, []string{
		`spec.egress[0].to[0].ipBlock.cidr: Required value`}},
	{"except", `{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.3.4/32]}}, {ipBlock: {cidr: "2001:db8::/32", except: ["2001:DB8:0:1::/64"]}}]}]}`, nil},
	{"bits beyond the prefix", `{egress: [{to: [{ipBlock: {cidr: 10.0.0.5/8, except: [10.1.2.3/16]}}]}]}`, nil},
	{"except equal", `{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}`, []string{
		"spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`: 10.0.0.0/8"}},
	{"except equal once masked", `{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.5/8]}}]}]}`, []string{
		"spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"10.0.0.5/8\": must be a strict subset of `cidr`: 10.0.0.0/8"}},
	{"except outside", `{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}}]}]}`, []string{
		"spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`: 10.0.0.0/8"}},
	{"except wider", `{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [0.0.0.0/0]}}]}]}`, []string{
		"spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"0.0.0.0/0\": must be a strict subset of `cidr`: 10.0.0.0/8"}},
	{"except of the other family", `{ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: ["2001:db8::/32"]}}]}]}`, []string{
		"spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"2001:db8::/32\": must be a strict subset of `cidr`: 0.0.0.0/0"}},
	{"except no cidr", `{ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.1]}}]}]}`, []string{
		`spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "10.0.0.1": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`}},
}

func TestNetworkPolicySpec(t *testing.T) {
	for _, tc := range specCases {
		t.Run(tc.name, func(t *testing.T) {
			np := policyWith(t, tc.spec)
			before := np.DeepCopy()
			got := messages(NetworkPolicy(np))
			if want := append([]string{}, tc.want...); !cmp.Equal(got, want) {
				t.Errorf("got − want +:\n%s", cmp.Diff(got, want))
			}
			if !cmp.Equal(before, np) {
				t.Error("validation changed the policy")
			}
		})
	}
}

func TestCIDRForms(t *testing.T) {
	for value, want := range map[string]string{
		"10.0.0.0/8":                          "",
		"10.0.0.5/8":                          "",
		"0.0.0.0/0":                           "",
		"1.2.3.4/32":                          "",
		"::/0":                                "",
		"2001:db8:0:0::/64":                   "",
		"2001:DB8::1/64":                      "",
		"::1/128":                             "",
		"010.0.0.0/8":                         "must not have leading 0s in IP or prefix length",
		"10.0.0.0/08":                         "must not have leading 0s in IP or prefix length",
		"::ffff:10.0.0.0/104":                 "must not have an IPv4-mapped IPv6 address",
		"10.0.0.0":                            "must be a valid CIDR value",
		"10.0.0.0/33":                         "must be a valid CIDR value",
		"10.0.0.0/-1":                         "must be a valid CIDR value",
		"10.0.0/8":                            "must be a valid CIDR value",
		"10.0.0.0/255.0.0.0":                  "must be a valid CIDR value",
		"2001:db8::/129":                      "must be a valid CIDR value",
		"fe80::%eth0/64":                      "must be a valid CIDR value",
		" 10.0.0.0/8":                         "must be a valid CIDR value",
		"10.0.0.0/8\n":                        "must be a valid CIDR value",
		"example.com/8":                       "must be a valid CIDR value",
		"10.0.0.256/8":                        "must be a valid CIDR value",
		"10.0.0.0/99999999999999999999999999": "must be a valid CIDR value",
	} {
		np := policyWith(t, fmt.Sprintf(`{ingress: [{from: [{ipBlock: {cidr: %q}}]}]}`, value))
		got := strings.Join(messages(NetworkPolicy(np)), "\n")
		if want == "" && got != "" || want != "" && !strings.Contains(got, want) {
			t.Errorf("%q: got %q, want %q", value, got, want)
		}
	}
}

func TestNetworkPolicyMetadata(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*networkingv1.NetworkPolicy)
		want   string
	}{
		"dotted name":      {func(p *networkingv1.NetworkPolicy) { p.Name = "a.b-c.d1" }, ""},
		"label":            {func(p *networkingv1.NetworkPolicy) { p.Labels = map[string]string{"a/b": "c"} }, ""},
		"no name":          {func(p *networkingv1.NetworkPolicy) { p.Name = "" }, "metadata.name: Required value: name or generateName is required"},
		"upper case":       {func(p *networkingv1.NetworkPolicy) { p.Name = "A" }, `metadata.name: Invalid value: "A": a lowercase RFC 1123 subdomain must`},
		"long name":        {func(p *networkingv1.NetworkPolicy) { p.Name = strings.Repeat("a", 254) }, "must be no more than 253"},
		"no namespace":     {func(p *networkingv1.NetworkPolicy) { p.Namespace = "" }, "metadata.namespace: Required value"},
		"dotted namespace": {func(p *networkingv1.NetworkPolicy) { p.Namespace = "a.b" }, `metadata.namespace: Invalid value: "a.b"`},
		"bad label":        {func(p *networkingv1.NetworkPolicy) { p.Labels = map[string]string{"a": "b c"} }, `metadata.labels: Invalid value: "b c"`},
		"bad annotation":   {func(p *networkingv1.NetworkPolicy) { p.Annotations = map[string]string{"a b": ""} }, `metadata.annotations: Invalid value: "a b"`},
		"big annotations": {func(p *networkingv1.NetworkPolicy) {
			p.Annotations = map[string]string{"a": strings.Repeat("x", 1<<18)}
		}, "metadata.annotations: Too long"},
	} {
		np := policyWith(t, `{}`)
		tc.change(np)
		got := strings.Join(messages(NetworkPolicy(np)), "\n")
		if (tc.want == "") != (got == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: got %.300q, want %q", name, got, tc.want)
		}
	}
}

func TestErrorsComeInTheSameOrder(t *testing.T) {
	np := policyWith(t, `{podSelector: {matchLabels: {a: "-", b: "--", c: "---", d: "----"}}, policyTypes: [x]}`)
	np.Labels = map[string]string{"a": "-", "b": "--", "c": "---", "d": "----"}
	first := messages(NetworkPolicy(np))
	if len(first) != 9 {
		t.Fatalf("%d errors, want 9", len(first))
	}
	for range 50 {
		if again := messages(NetworkPolicy(np)); !slices.Equal(first, again) {
			t.Fatalf("order changed:\n%s", cmp.Diff(first, again))
		}
	}
}

func TestDefault(t *testing.T) {
	for name, tc := range map[string]struct{ spec, want string }{
		"no rules":             {`{}`, `{policyTypes: [Ingress]}`},
		"ingress":              {`{ingress: [{}]}`, `{ingress: [{}], policyTypes: [Ingress]}`},
		"egress":               {`{egress: [{}]}`, `{egress: [{}], policyTypes: [Ingress, Egress]}`},
		"egress without rules": {`{egress: []}`, `{egress: [], policyTypes: [Ingress]}`},
		"types stay":           {`{egress: [{}], policyTypes: [Egress]}`, `{egress: [{}], policyTypes: [Egress]}`},
		"ports": {`{ingress: [{ports: [{port: 1}, {protocol: UDP}]}], egress: [{ports: [{}]}]}`,
			`{ingress: [{ports: [{port: 1, protocol: TCP}, {protocol: UDP}]}], egress: [{ports: [{protocol: TCP}]}], policyTypes: [Ingress, Egress]}`},
	} {
		np := policyWith(t, tc.spec)
		before := np.DeepCopy()
		got := Default(np)
		if want := policyWith(t, tc.want); !cmp.Equal(got, want) {
			t.Errorf("%s: got − want +:\n%s", name, cmp.Diff(got, want))
		}
		if !cmp.Equal(np, before) {
			t.Errorf("%s: the caller's policy changed", name)
		}
		if again := Default(got); !cmp.Equal(again, got) {
			t.Errorf("%s: a second Default changed it", name)
		}
	}
}

func TestWarnings(t *testing.T) {
	for name, tc := range map[string]struct {
		spec string
		want []string
	}{
		"none": {`{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {podSelector: {}}]}]}`, nil},
		"host bits": {`{ingress: [{from: [{ipBlock: {cidr: 10.0.0.5/8, except: [10.1.0.0/16, 10.2.0.1/16]}}]}], egress: [{to: [{ipBlock: {cidr: "2001:db8::1/64"}}]}]}`, []string{
			"spec.ingress[0].from[0].ipBlock.cidr: 10.0.0.5/8 has bits set beyond its prefix length and is read as 10.0.0.0/8; Kubernetes 1.36 refuses it in new objects",
			"spec.ingress[0].from[0].ipBlock.except[1]: 10.2.0.1/16 has bits set beyond its prefix length and is read as 10.2.0.0/16; Kubernetes 1.36 refuses it in new objects",
			"spec.egress[0].to[0].ipBlock.cidr: 2001:db8::1/64 has bits set beyond its prefix length and is read as 2001:db8::/64; Kubernetes 1.36 refuses it in new objects"}},
		"ingress without effect": {`{policyTypes: [Egress], ingress: [{}]}`, []string{"spec.ingress: has no effect because spec.policyTypes does not list Ingress"}},
		"egress without effect":  {`{policyTypes: [Ingress], egress: [{}]}`, []string{"spec.egress: has no effect because spec.policyTypes does not list Egress"}},
	} {
		if got := Warnings(policyWith(t, tc.spec)); !cmp.Equal(got, tc.want) {
			t.Errorf("%s: got − want +:\n%s", name, cmp.Diff(got, tc.want))
		}
	}
}
