package kube

import (
	"encoding/json"
	"errors"
	"reflect"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"

	"github.com/netverdict/netverdict/policy"
	"github.com/netverdict/netverdict/policy/validation"
)

// maxListDepth bounds Lists within Lists. Each level decodes its items again.
const maxListDepth = 8

// home is the API version of each kind that is read.
var home = map[string]string{
	"Namespace":     "v1",
	"Node":          "v1",
	"Pod":           "v1",
	"NetworkPolicy": "networking.k8s.io/v1",
}

// head is what is needed of an object to know what it is.
type head struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"metadata"`
}

// object names it for people: "NetworkPolicy shop/api".
func (h *head) object() string {
	if h.Kind == "" && h.Metadata.Name == "" {
		return ""
	}
	kind, name := h.Kind, h.Metadata.Name
	if kind == "" {
		kind = "object"
	}
	if strings.HasSuffix(kind, "List") && name == "" {
		return kind
	}
	if name == "" {
		name = "(no name)"
	}
	ns := h.Metadata.Namespace
	if ns == "" && (kind == "Pod" || kind == "NetworkPolicy") {
		ns = metav1.NamespaceDefault
	}
	return kind + " " + policy.NamespacedName{Namespace: ns, Name: name}.String()
}

// peek reads the head of an object. The error is a misfit of one of its fields,
// the others are valid then, or that raw is no object.
func peek(raw []byte) (head, error) {
	var h head
	err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &h)
	return h, err
}

func (h *head) group() string {
	group, _, ok := strings.Cut(h.APIVersion, "/")
	if !ok {
		return ""
	}
	return group
}

// reader collects the objects of a load.
type reader struct {
	snapshot policy.Snapshot
	report   Report
	problems LoadError
	seen     map[objectKey]Place
	// duplicates are the duplicate keys of the YAML document being read, by the
	// item they are in. JSON keeps them, so the decoder finds them itself.
	duplicates map[string][]string
}

type objectKey struct {
	kind string
	policy.NamespacedName
}

// object reads one object in JSON. Items of a typed list may leave out kind and
// apiVersion; outer is what they are then.
func (r *reader) object(at Place, raw []byte, outer head, depth int) {
	if r.problems.full() {
		r.problems.Stopped = true
		return
	}
	h, err := peek(raw)
	if err != nil {
		r.misfit(at, h.object(), raw, reflect.TypeFor[metav1.PartialObjectMetadata](), err)
		return
	}
	if h.Kind == "" && h.APIVersion == "" {
		h.Kind, h.APIVersion = outer.Kind, outer.APIVersion
	}
	switch {
	case h.Kind == "":
		r.problems.add(at, h.object(), "kind: Required value")
	case h.APIVersion == "":
		r.problems.add(at, h.object(), "apiVersion: Required value"+homeHint(h.Kind))
	case isList(&h):
		r.list(at, raw, &h, depth)
	case home[h.Kind] == h.APIVersion:
		r.read(at, raw, &h)
	default:
		r.other(at, &h)
	}
}

func homeHint(kind string) string {
	if v := home[kind]; v != "" {
		return ": write apiVersion: " + v
	}
	return ""
}

// misfit reports the fields of an object that do not fit its type; cause is the
// decoder's own error, for what the search for fields cannot tell.
func (r *reader) misfit(at Place, object string, raw []byte, t reflect.Type, cause error) {
	found := misfits(raw, t)
	if t == reflect.TypeFor[metav1.PartialObjectMetadata]() {
		found = withoutUnknown(found) // spec and the like are unknown to it
	}
	if len(found) == 0 {
		found = []string{cause.Error()}
	}
	for _, text := range found {
		r.problems.add(at, object, text)
	}
}

func withoutUnknown(found []string) []string {
	var out []string
	for _, text := range found {
		if !strings.HasSuffix(text, ": unknown field") {
			out = append(out, text)
		}
	}
	return out
}

// isList reports whether the object is a v1 List, or the list type of a kind that
// is read. Lists of other kinds are skipped as a whole.
func isList(h *head) bool {
	item, ok := strings.CutSuffix(h.Kind, "List")
	return ok && (item == "" && h.APIVersion == "v1" || item != "" && home[item] == h.APIVersion)
}

// list is the shape all list kinds share.
type list struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ListMeta   `json:"metadata"`
	Items           []json.RawMessage `json:"items"`
}

func (r *reader) list(at Place, raw []byte, h *head, depth int) {
	if depth >= maxListDepth {
		r.problems.add(at, h.object(), "Lists are nested more than "+strconv.Itoa(maxListDepth)+" deep")
		return
	}
	l, ok := decode[list](r, at, raw, h.object())
	if !ok {
		return
	}
	var outer head
	if item := strings.TrimSuffix(h.Kind, "List"); item != "" {
		outer.Kind, outer.APIVersion = item, h.APIVersion
	}
	for i, item := range l.Items {
		inner := at
		inner.Item = join(at.Item, "items["+strconv.Itoa(i)+"]")
		r.object(inner, item, outer, depth+1)
	}
}

// decode reads raw strictly and reports what does not fit.
func decode[T any](r *reader, at Place, raw []byte, object string) (*T, bool) {
	v := new(T)
	strict, err := kjson.UnmarshalStrict(raw, v)
	if err != nil {
		r.misfit(at, object, raw, reflect.TypeFor[T](), err)
		return nil, false
	}
	for _, e := range strict {
		r.problems.add(at, object, strictText(e))
	}
	for _, path := range r.duplicates[at.Item] {
		r.problems.add(at, object, path+": duplicate field")
	}
	return v, len(strict) == 0 && len(r.duplicates[at.Item]) == 0
}

// strictText turns `unknown field "spec.foo"` into "spec.foo: unknown field", the
// order of all other problems.
func strictText(err error) string {
	var fe kjson.FieldError
	if !errors.As(err, &fe) {
		return err.Error()
	}
	what := "unknown field"
	if strings.HasPrefix(err.Error(), "duplicate") {
		what = "duplicate field"
	}
	return fe.FieldPath() + ": " + what
}

// read decodes an object of a kind the snapshot has.
func (r *reader) read(at Place, raw []byte, h *head) {
	switch h.Kind {
	case "Namespace":
		if ns, ok := admit(r, at, raw, h, false, validation.Namespace); ok {
			for _, mistake := range annotationMistakes(ns) {
				r.report.notice(at, Warning, h.object(), mistake)
			}
			r.snapshot.Namespaces = append(r.snapshot.Namespaces, NamespaceFromAPI(ns))
		}
	case "Node":
		if node, ok := admit(r, at, raw, h, false, validation.Node); ok {
			r.snapshot.Nodes = keep(r, at, h, r.snapshot.Nodes, node, NodeFromAPI)
		}
	case "Pod":
		if pod, ok := admit(r, at, raw, h, true, validation.Pod); ok {
			r.snapshot.Pods = keep(r, at, h, r.snapshot.Pods, pod, PodFromAPI)
		}
	case "NetworkPolicy":
		if np, ok := admit(r, at, raw, h, true, validation.NetworkPolicy); ok {
			r.policy(at, h, np)
		}
	}
}

func (r *reader) policy(at Place, h *head, np *networkingv1.NetworkPolicy) {
	for _, w := range validation.Warnings(np) {
		r.report.notice(at, Warning, h.object(), w)
	}
	np.TypeMeta = metav1.TypeMeta{Kind: h.Kind, APIVersion: h.APIVersion}
	r.snapshot.Policies = append(r.snapshot.Policies, validation.Default(np))
}

// keep converts an object for the snapshot. Validation has passed, so an error
// would mean that the two disagree; it is reported all the same.
func keep[A, S any](r *reader, at Place, h *head, all []S, obj A, convert func(A) (S, error)) []S {
	converted, err := convert(obj)
	if err != nil {
		r.problems.add(at, h.object(), err.Error())
		return all
	}
	return append(all, converted)
}

// apiObject is a pointer to an API type.
type apiObject[T any] interface {
	*T
	metav1.Object
}

// admit decodes, defaults the namespace, validates, and looks for an earlier
// object of the same name.
func admit[T any, P apiObject[T]](r *reader, at Place, raw []byte, h *head, namespaced bool, check func(P) field.ErrorList) (P, bool) {
	v, ok := decode[T](r, at, raw, h.object())
	if !ok {
		return nil, false
	}
	obj := P(v)
	if namespaced && obj.GetNamespace() == "" {
		obj.SetNamespace(metav1.NamespaceDefault)
	}
	errs := check(obj)
	for _, e := range errs {
		r.problems.add(at, h.object(), e.Error())
	}
	return obj, r.first(at, h, obj) && len(errs) == 0
}

// first reports an object that was there before.
func (r *reader) first(at Place, h *head, obj metav1.Object) bool {
	key := objectKey{h.Kind, policy.NamespacedName{Namespace: obj.GetNamespace(), Name: obj.GetName()}}
	if key.Name == "" {
		return true // reported by validation
	}
	if before, ok := r.seen[key]; ok {
		r.problems.add(at, h.object(), "the same object is already in "+before.String()+"; remove one of them")
		return false
	}
	r.seen[key] = at
	return true
}

// other deals with objects that the snapshot has no place for: mistakes that
// would silently lose an object that was meant for it are problems, everything
// else is noted.
func (r *reader) other(at Place, h *head) {
	for kind, version := range home {
		if strings.EqualFold(kind, h.Kind) && kind != h.Kind && strings.EqualFold(version, h.APIVersion) {
			r.problems.add(at, h.object(), "kind: write "+kind+"; kinds are case-sensitive")
			return
		}
	}
	version, known := home[h.Kind]
	ours := head{APIVersion: version}
	switch {
	case known && (h.group() == ours.group() || h.group() == "extensions" || h.group() == ""):
		r.problems.add(at, h.object(), "apiVersion: "+h.APIVersion+" has no "+h.Kind+" in Kubernetes 1.36; write apiVersion: "+version)
	case strings.Contains(h.Kind, "NetworkPolicy"):
		r.report.notice(at, NotEnforced, h.object(), "this policy of "+h.APIVersion+" is NOT enforced; only networking.k8s.io/v1 NetworkPolicy is")
	default:
		r.report.notice(at, Skipped, h.object(), h.APIVersion+" "+h.Kind+" has no part in network policy; skipped")
	}
}
