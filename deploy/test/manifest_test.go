package deploytest

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

// objects are those of one manifest, by kind; nil where there is none.
type objects struct {
	account *corev1.ServiceAccount
	role    *rbacv1.ClusterRole
	binding *rbacv1.ClusterRoleBinding
	agents  *appsv1.DaemonSet
	peers   *corev1.Service
}

func readManifest(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(deploy, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// decode reads a manifest as strictly as the API server does: fields that do not
// exist, or appear twice, fail the test. So do kinds that nobody expects here.
func decode(t *testing.T, manifest string) objects {
	t.Helper()
	var out objects
	for _, doc := range documents(t, manifest) {
		switch o := decodeObject(t, doc).(type) {
		case *corev1.ServiceAccount:
			setOnce(t, &out.account, o)
		case *rbacv1.ClusterRole:
			setOnce(t, &out.role, o)
		case *rbacv1.ClusterRoleBinding:
			setOnce(t, &out.binding, o)
		case *appsv1.DaemonSet:
			setOnce(t, &out.agents, o)
		case *corev1.Service:
			setOnce(t, &out.peers, o)
		default:
			t.Fatalf("unexpected object %T:\n%s", o, doc)
		}
	}
	return out
}

func setOnce[T any](t *testing.T, where **T, what *T) {
	t.Helper()
	if *where != nil {
		t.Fatalf("a second %T", what)
	}
	*where = what
}

func documents(t *testing.T, manifest string) [][]byte {
	t.Helper()
	var out [][]byte
	r := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(manifest)))
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if !onlyComments(doc) {
			out = append(out, doc)
		}
	}
}

func onlyComments(doc []byte) bool {
	for line := range strings.Lines(string(doc)) {
		if line = strings.TrimSpace(line); line != "" && line != "---" && line[0] != '#' {
			return false
		}
	}
	return true
}

func decodeObject(t *testing.T, doc []byte) runtime.Object {
	t.Helper()
	codecs := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict)
	object, _, err := codecs.UniversalDeserializer().Decode(doc, nil, nil)
	if err != nil {
		t.Fatalf("%v in\n%s", err, doc)
	}
	return object
}
