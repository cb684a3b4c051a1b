// Command generate writes deploy/install.yaml and deploy/uninstall.yaml from the
// Helm chart. It runs in deploy/test, by `go generate`.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/netverdict/netverdict/deploy/test/render"
)

const deploy = ".."

func main() {
	for _, f := range render.Files {
		if err := write(f); err != nil {
			fmt.Fprintln(os.Stderr, "generate:", err)
			os.Exit(1)
		}
	}
}

func write(f render.File) error {
	text, err := f.Text(deploy)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	return os.WriteFile(filepath.Join(deploy, f.Name), []byte(text), 0o644)
}
