//go:build linux

package cluster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/netverdict/netverdict/kube/kubetest"
)

const module = "github.com/netverdict/netverdict"

// sourceTree is where the calling module finds netverdict: a replace directive
// names it, also in modules beside this one.
func sourceTree(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		return "", errors.Join(fmt.Errorf("find the source of %s: run this in a module that replaces it by the tree", module), err)
	}
	return dir, nil
}

func (c *Cluster) findBinary(ctx context.Context) error {
	if c.binary = c.opts.Binary; c.binary != "" {
		return nil
	}
	tree, err := sourceTree(ctx)
	if err != nil {
		return err
	}
	c.binary = filepath.Join(c.dir, "netverdict")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", c.binary, "./cmd/netverdict")
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build netverdict in %s: %w\n%s", tree, err, out)
	}
	return nil
}

// Binary is the netverdict that the agents run.
func (c *Cluster) Binary() string { return c.binary }

// install does what `kubectl apply -f deploy/install.yaml` does for an agent that
// is not a pod: its rights are created, its arguments remembered, its credentials
// written to a file.
func (c *Cluster) install(ctx context.Context) error {
	tree, err := sourceTree(ctx)
	if err != nil {
		return err
	}
	path := filepath.Join(tree, "deploy", "install.yaml")
	objects, err := readManifest(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	var account *corev1.ServiceAccount
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.ServiceAccount:
			account = o
			_, err = c.client.CoreV1().ServiceAccounts(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		case *rbacv1.ClusterRole:
			_, err = c.client.RbacV1().ClusterRoles().Create(ctx, o, metav1.CreateOptions{})
		case *rbacv1.ClusterRoleBinding:
			_, err = c.client.RbacV1().ClusterRoleBindings().Create(ctx, o, metav1.CreateOptions{})
		case *appsv1.DaemonSet:
			c.agentArgs = o.Spec.Template.Spec.Containers[0].Args
		default:
			err = fmt.Errorf("a cluster in a box does not know what to do with a %T", o)
		}
		if err != nil {
			return fmt.Errorf("install %s: %w", path, err)
		}
	}
	if account == nil || len(c.agentArgs) == 0 {
		return fmt.Errorf("install %s: want a ServiceAccount and a DaemonSet with arguments", path)
	}
	return c.writeAgentKubeconfig(ctx, account)
}

func readManifest(path string) ([]runtime.Object, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var objects []runtime.Object
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		o, _, err := scheme.Codecs.UniversalDeserializer().Decode(document, nil, nil)
		if runtime.IsMissingKind(err) { // only comments
			continue
		}
		if err != nil {
			return nil, err
		}
		objects = append(objects, o)
	}
}

func (c *Cluster) writeAgentKubeconfig(ctx context.Context, account *corev1.ServiceAccount) error {
	cfg, err := c.control.ServiceAccountConfig(ctx, account.Namespace, account.Name)
	if err != nil {
		return err
	}
	cfg.Host = "https://" + relayAddress
	text, err := kubetest.Kubeconfig(cfg)
	if err != nil {
		return err
	}
	return os.WriteFile(c.agentKubeconfig(), text, 0o600)
}

func (c *Cluster) agentKubeconfig() string { return filepath.Join(c.dir, "agent.kubeconfig") }
