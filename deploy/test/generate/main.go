// Command generate writes deploy/install.yaml and deploy/uninstall.yaml from the
// Helm chart, and deploy/seccomp/netverdict.json from the list in engine/seccomp. It
// runs in deploy/test, by `go generate`.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/netverdict/netverdict/deploy/test/render"
	"github.com/netverdict/netverdict/engine/seccomp"
)

const deploy = ".."

func main() {
	err := writeProfile()
	for _, f := range render.Files {
		err = errors.Join(err, write(f))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func writeProfile() error {
	text, err := seccomp.Container().OCI()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(deploy, "seccomp", "netverdict.json"), text, 0o644)
}

func write(f render.File) error {
	text, err := f.Text(deploy)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	return os.WriteFile(filepath.Join(deploy, f.Name), []byte(text), 0o644)
}
