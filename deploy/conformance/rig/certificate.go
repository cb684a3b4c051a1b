//go:build linux

package rig

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	certutil "k8s.io/client-go/util/cert"
)

// certificate is the kubelets', with the authority that signed it.
type certificate struct {
	authority string // a file
	pair      tls.Certificate
}

// kubeletHost is where the API server reaches kubelets.
const kubeletHost = "127.0.0.1"

func newCertificate(dir string) (*certificate, error) {
	cert, key, err := certutil.GenerateSelfSignedCertKey(kubeletHost, []net.IP{net.ParseIP(kubeletHost)}, nil)
	if err != nil {
		return nil, fmt.Errorf("make the kubelets' certificate: %w", err)
	}
	c := &certificate{authority: filepath.Join(dir, "kubelet.crt")}
	if c.pair, err = tls.X509KeyPair(cert, key); err != nil {
		return nil, fmt.Errorf("make the kubelets' certificate: %w", err)
	}
	return c, os.WriteFile(c.authority, cert, 0o644)
}

// listen opens a kubelet's port for the API server only: whoever connects shows a
// certificate that the authority in a file has signed.
func (c *certificate) listen(authority string) (net.Listener, error) {
	ca, err := os.ReadFile(authority)
	if err != nil {
		return nil, err
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(ca) {
		return nil, errors.New(authority + " has no certificate")
	}
	return tls.Listen("tcp", net.JoinHostPort(kubeletHost, "0"), &tls.Config{
		Certificates: []tls.Certificate{c.pair},
		ClientCAs:    clients, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"}, // SPDY upgrades a connection of HTTP/1.1
	})
}
