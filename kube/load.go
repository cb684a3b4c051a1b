package kube

import (
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/netverdict/netverdict/policy"
)

// Options say how manifests are read and watched. The zero Options are the defaults.
type Options struct {
	// Recursive reads the subdirectories of a directory too, as kubectl apply -R.
	Recursive bool
	// Stdin, if not nil, is what Load and LoadAll read for the path "-".
	Stdin io.Reader
	// Quiet is how long Watch waits for further changes after one; default 75 ms.
	// It does not wait longer than ten times that in all.
	Quiet time.Duration
	// Poll is how often Watch looks by itself, for changes that the kernel does not
	// report (network file systems, targets of links); default 10 s.
	Poll time.Duration

	// newNotify replaces fsnotify.NewWatcher in tests of its failures.
	newNotify func() (*fsnotify.Watcher, error)
}

// Load reads the manifests at path, a file or a directory. Policies in the
// snapshot are valid and have the API's defaults. Snapshot.Local and the fields
// after it are left to the caller.
//
// The error is a *LoadError with all problems found; then there is no snapshot.
// The report is never nil.
func Load(path string, opts Options) (*policy.Snapshot, *Report, error) {
	return LoadAll([]string{path}, opts)
}

// LoadAll is Load for several paths, which together make one snapshot: an object
// that occurs under two of them is a problem like one that a file has twice.
func LoadAll(paths []string, opts Options) (*policy.Snapshot, *Report, error) {
	in := &reading{}
	for _, path := range paths {
		if path == "-" && opts.Stdin != nil {
			in.readStdin(opts.Stdin)
			continue
		}
		source{path: path, recursive: opts.Recursive}.readInto(in)
	}
	return parse(in)
}

// parse makes a snapshot of what was read.
func parse(in *reading) (*policy.Snapshot, *Report, error) {
	r := &reader{seen: map[objectKey]Place{}, problems: in.problems, report: in.report}
	r.report.Files = len(in.files)
	for _, f := range in.files {
		r.file(f)
	}
	r.report.policies = r.policyPlaces()
	if err := r.problems.orNil(); err != nil {
		return nil, &r.report, err
	}
	r.report.Namespaces, r.report.Pods = len(r.snapshot.Namespaces), len(r.snapshot.Pods)
	r.report.Nodes, r.report.NetworkPolicies = len(r.snapshot.Nodes), len(r.snapshot.Policies)
	return &r.snapshot, &r.report, nil
}

func (r *reader) policyPlaces() map[policy.NamespacedName]Place {
	places := map[policy.NamespacedName]Place{}
	for key, at := range r.seen {
		if key.kind == "NetworkPolicy" {
			places[key.NamespacedName] = at
		}
	}
	return places
}

func (r *reader) file(f file) {
	if err := checkEncoding(f.data); err != nil {
		r.problems.add(Place{File: f.path}, "", err.Error())
		return
	}
	for _, doc := range split(f.data) {
		if r.problems.full() {
			r.problems.Stopped = true
			return
		}
		r.report.Documents++
		r.document(Place{File: f.path, Document: doc.index, Line: doc.line}, doc)
	}
}

func (r *reader) document(at Place, doc document) {
	values, isJSON, jsonErr := jsonObjects(doc)
	if isJSON && jsonErr == nil {
		for _, v := range values {
			at.Line = v.line
			r.object(at, v.raw, head{}, 0)
		}
		return
	}
	raw, duplicates, err := yamlToJSON(doc.text)
	switch {
	case err != nil && isJSON: // neither: the JSON error is the clearer one
		r.problems.add(at, "", "not valid JSON: "+jsonErr.Error())
	case err != nil:
		r.problems.add(at, "", "not valid YAML: "+inFile(err, doc))
	case string(raw) == "null":
	case raw[0] != '{':
		r.problems.add(at, "", "want an object with apiVersion and kind, got a list or a plain value")
	default:
		r.duplicates = byItem(duplicates)
		r.object(at, raw, head{}, 0)
		r.duplicates = nil
	}
}

var itemPath = regexp.MustCompile(`^items\[\d+\](\.items\[\d+\])*`)

// byItem sorts the duplicate keys of a document by the object they are in, named
// as Place.Item does: "items[1].spec.podSelector" is spec.podSelector of items[1].
func byItem(duplicates []string) map[string][]string {
	out := map[string][]string{}
	for _, path := range duplicates {
		item := itemPath.FindString(path)
		if item == path { // the list of a nested List, or rather an oddity
			item = ""
		}
		out[item] = append(out[item], strings.TrimPrefix(strings.TrimPrefix(path, item), "."))
	}
	return out
}
