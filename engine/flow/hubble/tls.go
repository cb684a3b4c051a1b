package hubble

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// TLSFiles are the PEM files of mutual TLS. They are read again when they change,
// so certificates can be renewed while connections go on.
type TLSFiles struct {
	Cert, Key string // the server's certificate, with those between it and the CA
	ClientCA  string // the authorities whose clients may connect
}

// Config reads the files and returns a configuration for TLS 1.3 that admits only
// clients with a certificate of the ClientCA. report is called when files have
// changed and cannot be used; the last good ones stay in use.
func (f TLSFiles) Config(report func(error)) (*tls.Config, error) {
	k := &keys{files: f, report: report}
	if err := k.reload(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return k.current(), nil
		},
	}, nil
}

// keys is what the files said when they were read last.
type keys struct {
	files  TLSFiles
	report func(error)

	mu     sync.Mutex
	config *tls.Config
	stamps [3]stamp
}

// stamp tells versions of a file apart. Replaced files, as those of a Secret's
// volume are, have another time even if they have the same size.
type stamp struct {
	modified time.Time
	size     int64
}

// current is the configuration for one handshake.
func (k *keys) current() *tls.Config {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stamps != k.files.stamps() {
		if err := k.reload(); err != nil {
			k.report(err)
		}
	}
	return k.config
}

// reload reads the files. Its error is reported once for each state of them.
func (k *keys) reload() error {
	k.stamps = k.files.stamps()
	cert, err := tls.LoadX509KeyPair(k.files.Cert, k.files.Key)
	if err != nil {
		return fmt.Errorf("load the certificate of the Hubble server from %s and %s: %w", k.files.Cert, k.files.Key, err)
	}
	pem, err := os.ReadFile(k.files.ClientCA)
	if err != nil {
		return fmt.Errorf("load the authorities of Hubble clients: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return errors.New("load the authorities of Hubble clients from " + k.files.ClientCA + ": no certificate in it")
	}
	k.config = &tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"h2"}, // RFC 9113 section 3.2
		Certificates: []tls.Certificate{cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
	}
	return nil
}

func (f TLSFiles) stamps() (all [3]stamp) {
	for i, name := range [...]string{f.Cert, f.Key, f.ClientCA} {
		if info, err := os.Stat(name); err == nil {
			all[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return all
}
