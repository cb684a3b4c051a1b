package hubble

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert, a.key = a.sign(template, nil)
	return a
}

func (a *authority) sign(template *x509.Certificate, parent *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	by, byKey := template, key
	if parent != nil {
		by, byKey = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, &key.PublicKey, byKey)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// pair is a certificate for a name, and its key, PEM.
func (a *authority) pair(name string) (cert, key []byte) {
	a.t.Helper()
	c, k := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a)
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// tlsServer serves flows on TCP with certificates of an authority.
type tlsServer struct {
	t        *testing.T
	files    TLSFiles
	address  string
	reported atomic.Int64
}

func newTLSServer(t *testing.T, a *authority) *tlsServer {
	t.Helper()
	dir := t.TempDir()
	s := &tlsServer{t: t, files: TLSFiles{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), ClientCA: filepath.Join(dir, "ca.crt")}}
	s.install(a)
	config, err := s.files.Config(func(error) { s.reported.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	g := grpc.NewServer(append(ServerOptions(), grpc.Creds(credentials.NewTLS(config)))...)
	newServer(t, Options{}).Register(g)
	go func() { _ = g.Serve(l) }() // it ends with Stop
	t.Cleanup(g.Stop)
	return s
}

func (s *tlsServer) install(a *authority) {
	s.t.Helper()
	cert, key := a.pair(ServerName("node-1", ""))
	s.write(cert, key, a.pem())
}

// write replaces the files, with times that differ from all before.
func (s *tlsServer) write(cert, key, ca []byte) {
	s.t.Helper()
	for name, data := range map[string][]byte{s.files.Cert: cert, s.files.Key: key, s.files.ClientCA: ca} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}

// ask makes a request with the credentials; it returns the code of the answer.
func (s *tlsServer) ask(creds credentials.TransportCredentials) codes.Code {
	s.t.Helper()
	conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(creds))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	_, err = observerpb.NewObserverClient(conn).ServerStatus(ctx, &observerpb.ServerStatusRequest{})
	return status.Code(err)
}

// client is the credentials of a client of an authority; nil is one without any
// certificate that trusts the server blindly.
func (s *tlsServer) client(a *authority) credentials.TransportCredentials {
	s.t.Helper()
	config := &tls.Config{ServerName: ServerName("node-1", ""), InsecureSkipVerify: true}
	if a != nil {
		certPEM, keyPEM := a.pair("client")
		cert, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			s.t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(a.pem())
		config = &tls.Config{ServerName: ServerName("node-1", ""), RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	}
	return credentials.NewTLS(config)
}

// TestMutualTLS: only clients of the authority are served.
func TestMutualTLS(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	s := newTLSServer(t, ours)
	stranger := s.client(theirs)
	if err := stranger.OverrideServerName(ServerName("node-1", "")); err != nil { //nolint:staticcheck // to keep the name
		t.Fatal(err)
	}
	for what, test := range map[string]struct {
		creds credentials.TransportCredentials
		want  codes.Code
	}{
		"a client of the authority":        {s.client(ours), codes.OK},
		"a client of another authority":    {stranger, codes.Unavailable},
		"a client without a certificate":   {s.client(nil), codes.Unavailable},
		"a client that does not speak TLS": {insecure.NewCredentials(), codes.Unavailable},
	} {
		if got := s.ask(test.creds); got != test.want {
			t.Errorf("%s gets %v, want %v", what, got, test.want)
		}
	}
}

// TestNoOldTLS: TLS 1.2 is refused even with the right certificate.
func TestNoOldTLS(t *testing.T) {
	a := newAuthority(t)
	s := newTLSServer(t, a)
	config := &tls.Config{ServerName: ServerName("node-1", ""), InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}
	certPEM, keyPEM := a.pair("client")
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	config.Certificates = []tls.Certificate{cert}
	d := &tls.Dialer{Config: config}
	if conn, err := d.DialContext(t.Context(), "tcp", s.address); err == nil {
		conn.Close()
		t.Error("TLS 1.2 is accepted")
	}
}

// TestReload: renewed files are used by the next connection, broken ones are
// reported and ignored.
func TestReload(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	s := newTLSServer(t, first)
	if got := s.ask(s.client(first)); got != codes.OK {
		t.Fatalf("the first authority's client gets %v", got)
	}
	s.install(second)
	if got := s.ask(s.client(second)); got != codes.OK {
		t.Errorf("after a renewal, the new authority's client gets %v", got)
	}
	if got := s.ask(s.client(first)); got != codes.Unavailable {
		t.Errorf("after a renewal, the old authority's client gets %v", got)
	}
	s.write([]byte("broken"), []byte("broken"), []byte("broken"))
	if got := s.ask(s.client(second)); got != codes.OK {
		t.Errorf("with broken files, the last good authority's client gets %v", got)
	}
	if s.reported.Load() == 0 {
		t.Error("broken files are not reported")
	}
}

func TestTLSFilesMissing(t *testing.T) {
	a := newAuthority(t)
	s := newTLSServer(t, a)
	for _, broken := range []TLSFiles{
		{Cert: "/none", Key: s.files.Key, ClientCA: s.files.ClientCA},
		{Cert: s.files.Cert, Key: s.files.Key, ClientCA: "/none"},
		{Cert: s.files.Cert, Key: s.files.Key, ClientCA: s.files.Key}, // no certificate in it
	} {
		if _, err := broken.Config(nil); err == nil || !matches("load the (certificate|authorities)", err.Error()) {
			t.Errorf("%+v: %v", broken, err)
		}
	}
}
