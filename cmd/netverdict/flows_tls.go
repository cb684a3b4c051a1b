package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// flowCredentials are what a client of agents shows and demands over TCP.
type flowCredentials struct {
	ca, cert, key string // PEM files
	serverName    string
	plaintext     bool
}

func (c *flowCredentials) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.ca, "tls-ca", "", "`path` of the authority of the agents' certificates, PEM; over TCP agents speak mutual TLS")
	f.StringVar(&c.cert, "tls-cert", "", "`path` of the certificate to show to agents, PEM")
	f.StringVar(&c.key, "tls-key", "", "`path` of the key of --tls-cert")
	f.StringVar(&c.serverName, "tls-server-name", "", "`name` that a server's certificate must have (default: the host of --server; of the agents of a cluster NODE.default.hubble-grpc.cilium.io)")
	f.BoolVar(&c.plaintext, "plaintext", false, "no TLS, for a relay that has none; agents do not offer this")
	exclude(cmd, "plaintext", "tls-ca", "tls-cert", "tls-key")
}

// config reads the files.
func (c *flowCredentials) config() (*tls.Config, error) {
	if c.ca == "" || c.cert == "" || c.key == "" {
		return nil, errors.New("agents speak mutual TLS over TCP: give --tls-ca, --tls-cert and --tls-key")
	}
	pem, err := os.ReadFile(c.ca)
	if err != nil {
		return nil, fmt.Errorf("--tls-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--tls-ca %s: no certificate in it", c.ca)
	}
	cert, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert %s, --tls-key %s: %w", c.cert, c.key, err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{cert}}, nil
}
