package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// plugin is how this program is called as a plugin of kubectl: a file in PATH of that
// name, for `kubectl netverdict`.
const plugin = "kubectl-netverdict"

// calledAs is what people type to call the program that runs as path.
func calledAs(path string) string {
	if filepath.Base(path) == plugin {
		return "kubectl netverdict"
	}
	return "netverdict"
}

// explainUsage makes what is wrong with a command line say what would be right.
func explainUsage(root *cobra.Command, program string) {
	root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: calledAs(program)}
	root.SuggestionsMinimumDistance = 2
	root.Version = versionText()
	root.SetVersionTemplate("netverdict {{.Version}}\n")
	root.Args = knownVerb
	root.SetFlagErrorFunc(flagError)
}

// flagError says it as this program's own checks do: --flag value: want something.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var invalid *pflag.InvalidValueError
	var syntax *strconv.NumError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("%w%s", err, seeHelp(cmd))
	case !errors.As(err, &invalid):
		return err
	}
	flag := invalid.GetFlag()
	if want, ok := wantValue[flag.Value.Type()]; ok && (errors.As(err, &syntax) || flag.Value.Type() == "duration") {
		return fmt.Errorf("--%s %q: want %s", flag.Name, invalid.GetValue(), want)
	}
	cause := invalid.Unwrap()
	if strings.Contains(cause.Error(), invalid.GetValue()) {
		return fmt.Errorf("--%s: %w", flag.Name, cause)
	}
	return fmt.Errorf("--%s %q: %w", flag.Name, invalid.GetValue(), cause)
}

// wantValue has words for the types of flags whose errors are strconv's.
var wantValue = map[string]string{
	"bool":     "true or false",
	"int":      "a whole number",
	"uint16":   "a number within 0–65535",
	"uint32":   "a number within 0–4294967295",
	"float64":  "a number",
	"duration": "a duration such as 30s or 5m",
}

func seeHelp(cmd *cobra.Command) string { return fmt.Sprintf("; see %s --help", cmd.CommandPath()) }

// knownVerb refuses a bare word that is no verb: a mistake, not a request for help.
func knownVerb(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q", args[0])
	if near := root.SuggestionsFor(args[0]); len(near) > 0 {
		text += ", did you mean " + strings.Join(near, " or ") + "?"
	}
	return errors.New(text + seeHelp(root))
}

// noArgs is for verbs that have flags only.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%q: %s has flags only, no arguments%s", args[0], cmd.CommandPath(), seeHelp(cmd))
}

// oneOf is for verbs with one argument, which is one of these words.
func oneOf(words ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 && slices.Contains(words, args[0]) {
			return nil
		}
		return fmt.Errorf("want %s, got %q%s", strings.Join(words, " or "), args, seeHelp(cmd))
	}
}

// exactArgs is for verbs that want arguments of these names.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		return fmt.Errorf("want %s, got %q%s", strings.Join(names, " and "), args, seeHelp(cmd))
	}
}

// require makes a flag a must. what says what it is for.
func require(cmd *cobra.Command, name, what string) {
	demand(cmd, func(given func(string) bool) error {
		if given(name) {
			return nil
		}
		return fmt.Errorf("--%s is missing: %s%s", name, what, seeHelp(cmd))
	})
}

// exclude allows a flag only without others.
func exclude(cmd *cobra.Command, name string, others ...string) {
	demand(cmd, func(given func(string) bool) error {
		if i := slices.IndexFunc(others, given); i >= 0 && given(name) {
			return fmt.Errorf("--%s and --%s: give one of them%s", name, others[i], seeHelp(cmd))
		}
		return nil
	})
}

// demand has the flags of a command checked before it runs, after earlier demands.
func demand(cmd *cobra.Command, check func(given func(string) bool) error) {
	before := cmd.PreRunE
	cmd.PreRunE = func(c *cobra.Command, args []string) error {
		if before != nil {
			if err := before(c, args); err != nil {
				return err
			}
		}
		return check(c.Flags().Changed)
	}
}
