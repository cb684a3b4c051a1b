// Package render turns the Helm chart into manifests with helm's own library, as
// `helm template` does, and makes from them the files for kubectl:
//
//	chart/ ─▶ values of a file ─▶ Chart ─▶ File ─▶ deploy/install.yaml, deploy/uninstall.yaml
//
// The files are committed, so that nobody needs Helm to install; a test demands that
// they are current.
package render

import (
	"cmp"
	"fmt"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/loader"
	"helm.sh/helm/v4/pkg/release"

	"github.com/netverdict/netverdict/kube/kubetest"
)

// Release says how a chart is rendered; the zero Release renders its default values
// for nobody's cluster, so set Name and Namespace.
type Release struct {
	Name      string
	Namespace string
	// Values override those of values.yaml.
	Values map[string]any
	// Kubernetes is the version of the server, "v1.36.3"; empty means the one that
	// the tests run.
	Kubernetes string
}

// Rendered is what a chart became.
type Rendered struct {
	// Manifest holds the objects as YAML documents in the order of installation,
	// comments included, each after a line "# Source: chart/templates/file".
	Manifest string
	// Notes is what helm prints after the installation.
	Notes string
}

// Chart renders the chart in a directory. Values that its schema refuses are an
// error, and so is a Kubernetes version that it does not support.
func Chart(dir string, r Release) (Rendered, error) {
	loaded, err := loader.Load(dir)
	if err != nil {
		return Rendered{}, fmt.Errorf("load chart %s: %w", dir, err)
	}
	install := action.NewInstall(action.NewConfiguration())
	install.DryRunStrategy = action.DryRunClient
	install.ReleaseName, install.Namespace = r.Name, r.Namespace
	install.Replace = true // no release is asked for, so no name is taken
	// Helm's own default depends on how this program was built.
	server := cmp.Or(r.Kubernetes, kubetest.Version())
	if install.KubeVersion, err = common.ParseKubeVersion(server); err != nil {
		return Rendered{}, fmt.Errorf("version of Kubernetes %q: %w", server, err)
	}
	values := r.Values
	if values == nil {
		values = map[string]any{}
	}
	released, err := install.Run(loaded, values)
	if err != nil {
		return Rendered{}, fmt.Errorf("render chart %s: %w", dir, err)
	}
	accessor, err := release.NewAccessor(released)
	if err != nil {
		return Rendered{}, fmt.Errorf("read what became of chart %s: %w", dir, err)
	}
	return Rendered{Manifest: accessor.Manifest(), Notes: accessor.Notes()}, nil
}
