package kubetest

import (
	"context"
	"fmt"
	"net/http"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// User is who a client says it is; RBAC decides what it may do. Nobody has any
// rights at first except the members of system:masters, who have all of them.
type User struct {
	Name   string
	Groups []string
}

// Administrator may do everything.
var Administrator = User{Name: "kubernetes-admin", Groups: []string{"system:masters"}}

// Admin is the configuration of a client that may do everything.
func (cp *ControlPlane) Admin() *rest.Config { return rest.CopyConfig(cp.admin) }

// RESTConfig makes the configuration of a client with a certificate for the user.
// It has no rate limit: tests create many objects.
func (cp *ControlPlane) RESTConfig(u User) (*rest.Config, error) {
	signed, err := cp.authority.client(u)
	if err != nil {
		return nil, err
	}
	cfg := cp.anonymous()
	cfg.CertData, cfg.KeyData = signed.cert, signed.key
	return cfg, nil
}

// ServiceAccountConfig makes the configuration of a client that shows a token of
// an existing ServiceAccount, as pods do.
func (cp *ControlPlane) ServiceAccountConfig(ctx context.Context, namespace, name string) (*rest.Config, error) {
	client, err := kubernetes.NewForConfig(cp.admin)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(lifetime.Seconds()))}}
	answer, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, request, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("request a token for ServiceAccount %s/%s: %w", namespace, name, err)
	}
	cfg := cp.anonymous()
	cfg.BearerToken = answer.Status.Token
	return cfg, nil
}

// anonymous knows the server but not who asks.
func (cp *ControlPlane) anonymous() *rest.Config {
	return &rest.Config{
		Host:            cp.URL(),
		TLSClientConfig: rest.TLSClientConfig{CAData: cp.authority.pem},
		QPS:             -1,
	}
}

// Kubeconfig renders a configuration that this package made as kubectl and
// --kubeconfig flags read it.
func Kubeconfig(cfg *rest.Config) ([]byte, error) {
	const name = "kubetest"
	out := clientcmdapi.NewConfig()
	out.Clusters[name] = &clientcmdapi.Cluster{Server: cfg.Host, CertificateAuthorityData: cfg.CAData}
	out.AuthInfos[name] = &clientcmdapi.AuthInfo{
		ClientCertificateData: cfg.CertData,
		ClientKeyData:         cfg.KeyData,
		Token:                 cfg.BearerToken,
	}
	out.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	out.CurrentContext = name
	text, err := clientcmd.Write(*out)
	if err != nil {
		return nil, fmt.Errorf("render a kubeconfig: %w", err)
	}
	return text, nil
}

// httpsProbe asks a path and wants 200.
func httpsProbe(cfg *rest.Config, url string) (func(context.Context) error, error) {
	transport, err := rest.TransportFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("prepare to ask %s: %w", url, err)
	}
	client := &http.Client{Transport: transport}
	return func(ctx context.Context) error { return ask(ctx, client, url) }, nil
}
