//go:build linux

package kubelet

import (
	"bytes"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestAddressesRestBeforeTheyAreUsedAgain(t *testing.T) {
	a := newAddresses([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/29"), netip.MustParsePrefix("fd00::/64")})
	var order []string
	for range 8 { // .1 to .6 are usable
		addrs, err := a.take(&corev1.Pod{})
		if err != nil {
			t.Fatal(err)
		}
		order = append(order, addrs[0].String())
		a.release(addrs)
	}
	want := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.1", "10.0.0.2"}
	if !slices.Equal(order, want) {
		t.Errorf("addresses in order %v, want %v", order, want)
	}
}

func TestAddressesRunOut(t *testing.T) {
	a := newAddresses([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/30")})
	for range 2 {
		if _, err := a.take(&corev1.Pod{}); err != nil {
			t.Fatal(err)
		}
	}
	if addrs, err := a.take(&corev1.Pod{}); err == nil {
		t.Errorf("a third address of a /30: %v", addrs)
	}
}

func TestAddressesAskedFor(t *testing.T) {
	a := newAddresses([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")})
	ask := func(addresses string) ([]netip.Addr, error) {
		return a.take(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{AddressesAnnotation: addresses}}})
	}
	got, err := ask("10.0.0.7, fd00::7")
	if want := []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"10.0.0.7", "10.0.1.1", "x"} { // taken, elsewhere, no address
		if got, err := ask(bad); err == nil {
			t.Errorf("%q: got %v, want an error", bad, got)
		}
	}
	a.release(got)
	if _, err := ask("10.0.0.7"); err != nil {
		t.Error(err)
	}
}

func TestImageArguments(t *testing.T) {
	image := Image{Entrypoint: []string{"/agnhost"}, Arguments: []string{"pause"}}
	env := []corev1.EnvVar{{Name: "PORT", Value: "80"}}
	for _, tc := range []struct {
		container corev1.Container
		want      []string
	}{
		{corev1.Container{}, []string{"/agnhost", "pause"}},
		{corev1.Container{Args: []string{"netexec", "--port=$(PORT)"}, Env: env}, []string{"/agnhost", "netexec", "--port=80"}},
		{corev1.Container{Command: []string{"/agnhost", "connect"}}, []string{"/agnhost", "connect"}},
		{corev1.Container{Command: []string{"/x"}, Args: []string{"$$(PORT)", "$(NONE)"}, Env: env}, []string{"/x", "$(PORT)", "$(NONE)"}},
	} {
		if got := image.argv(&tc.container); !slices.Equal(got, tc.want) {
			t.Errorf("%+v: got %q, want %q", tc.container, got, tc.want)
		}
	}
}

func TestRepository(t *testing.T) {
	for image, want := range map[string]string{
		"registry.k8s.io/e2e-test-images/agnhost:2.63.0": "registry.k8s.io/e2e-test-images/agnhost",
		"localhost:5000/agnhost":                         "localhost:5000/agnhost",
		"localhost:5000/agnhost:1@sha256:abc":            "localhost:5000/agnhost",
	} {
		if got := repository(image); got != want {
			t.Errorf("%s: got %s, want %s", image, got, want)
		}
	}
}

// writeLog makes a log of lines that a process wrote in odd pieces.
func writeLog(t *testing.T, pieces ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(path, path+".previous")
	if err != nil {
		t.Fatal(err)
	}
	s := l.stream("stdout")
	for _, p := range pieces {
		if _, err := s.Write([]byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	s.flush()
	l.Close()
	return path
}

func TestLog(t *testing.T) {
	path := writeLog(t, "on", "e\ntw", "o\n", "three F x")
	for query, want := range map[string]string{
		"":                               "one\ntwo\nthree F x\n",
		"tailLines=1":                    "three F x\n",
		"tailLines=0":                    "",
		"limitBytes=5":                   "one\nt",
		"sinceSeconds=3600":              "one\ntwo\nthree F x\n",
		"sinceTime=2100-01-01T00:00:00Z": "",
		"follow=true&tailLines=2":        "two\nthree F x\n",
	} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		options, err := parseLogOptions(values)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := copyLog(t.Context(), &out, path, options, func() bool { return true }); err != nil {
			t.Errorf("%s: %v", query, err)
		}
		if out.String() != want {
			t.Errorf("%s: got %q, want %q", query, out.String(), want)
		}
	}
}

func TestLogTimestamps(t *testing.T) {
	var out bytes.Buffer
	options := logOptions{timestamps: true, tail: -1}
	if err := copyLog(t.Context(), &out, writeLog(t, "one\n"), options, func() bool { return true }); err != nil {
		t.Fatal(err)
	}
	stamp, text, _ := bytes.Cut(out.Bytes(), []byte(" "))
	if _, err := time.Parse(time.RFC3339Nano, string(stamp)); err != nil || string(text) != "one\n" {
		t.Errorf("got %q, want a time and the line", out.String())
	}
}

func TestLogOptionsThatAreWrong(t *testing.T) {
	for _, query := range []string{"follow=x", "tailLines=x", "sinceTime=yesterday"} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if o, err := parseLogOptions(values); err == nil {
			t.Errorf("%s: got %+v, want an error", query, o)
		}
	}
}
