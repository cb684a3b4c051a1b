package main

import (
	"context"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	program := func() { os.Exit(run(context.Background(), env{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:])) }
	testscript.Main(m, map[string]func(){
		"netverdict": program,
		plugin:       program,
		"capture":    func() { os.Exit(writeCapture(os.Stdin, os.Args[1:])) },
	})
}

// TestScripts runs what users type: testdata/script/*.txtar.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{Dir: "testdata/script", RequireExplicitExec: true, RequireUniqueNames: true})
}
