package supply

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// run runs one of the repository's scripts.
func run(t *testing.T, env []string, args ...string) (out string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join("..", "..", args[0]), args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

// The databases are of the format of https://go.dev/doc/security/vuln/database; in both
// is a weakness of a module that the program calls: of all its versions, or of old ones.
func TestVulnerabilities(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		db, want string
		code     int
	}{
		{"file://" + here + "/testdata/vulndb/found", "GO-2026-0001", 3},
		{"file://" + here + "/testdata/vulndb/clean", "knows no vulnerability", 0},
		{"file://" + here + "/testdata/vulndb/none", "COULD NOT CHECK", 1},
		{"http://127.0.0.1:9", "COULD NOT CHECK", 1},
	} {
		out, code := run(t, []string{"GOVULNDB=" + test.db}, ".ci/vuln")
		if code != test.code || !strings.Contains(out, test.want) {
			t.Errorf("%s: exit code %d, want %d and %q:\n%s", test.db, code, test.code, test.want, out)
		}
	}
}

// The bill of this test's own program: what it was built from is known.
func TestBillOfMaterials(t *testing.T) {
	program := filepath.Join(t.TempDir(), "sbom")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./sbom").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	status := filepath.Join(t.TempDir(), "status")
	if err := os.WriteFile(status, []byte(`Package: iptables
Status: install ok installed
Architecture: amd64
Version: 1.8.9-2
Description: administration tools
 Version: none, this is text

Package: libstdc++6
Status: install ok installed
Architecture: amd64
Version: 1:12.2.0+dfsg-14

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1
`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, code := run(t, []string{"DPKG=" + status}, ".ci/sbom", program, "v1.2.3")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	var bom struct {
		BOMFormat  string
		Components []struct{ Name, Version, PURL string }
	}
	if err := json.NewDecoder(bytes.NewReader([]byte(out))).Decode(&bom); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	found := map[string]string{}
	for _, c := range bom.Components {
		found[c.Name] = c.PURL
	}
	for name, purl := range map[string]string{
		"iptables": "pkg:deb/debian/iptables@1.8.9-2?", "libstdc++6": "pkg:deb/debian/libstdc%2B%2B6@1%3A12.2.0%2Bdfsg-14?",
		"github.com/CycloneDX/cyclonedx-go": "pkg:golang/github.com/%21cyclone", "std": "pkg:golang/std@",
	} {
		if !strings.HasPrefix(strings.ToLower(found[name]), strings.ToLower(strings.ReplaceAll(purl, "%21", ""))) {
			t.Errorf("%s is %q in the bill, want %s…", name, found[name], purl)
		}
	}
	if _, listed := found["gone"]; listed || bom.BOMFormat != "CycloneDX" {
		t.Errorf("a package that was removed is listed, or it is no CycloneDX:\n%.300s", out)
	}
	if out, code := run(t, nil, ".ci/sbom", "/bin/sh"); code == 0 || !strings.Contains(out, "/bin/sh") && !strings.Contains(out, "dash") {
		t.Errorf("a program that is not Go's: exit code %d: %s", code, out)
	}
}
