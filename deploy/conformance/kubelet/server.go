//go:build linux

package kubelet

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"strconv"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// streamIdle and streamCreation are the kubelet's own.
const (
	streamIdle     = 4 * time.Hour
	streamCreation = remotecommand.DefaultStreamCreationTimeout
)

// routes are the parts of the kubelet's API that the API server calls.
func (n *Node) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", n.serveExec)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", n.serveLogs)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "this test node does not know "+r.URL.Path+": it has exec and containerLogs", http.StatusNotImplemented)
	})
	return mux
}

// requested finds the container that a request names.
func (n *Node) requested(w http.ResponseWriter, r *http.Request) *container {
	p, err := n.provider.find(r.PathValue("namespace"), r.PathValue("pod"))
	var c *container
	if err == nil {
		c, err = p.container(r.PathValue("container"))
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return nil
	}
	return c
}

func (n *Node) serveExec(w http.ResponseWriter, r *http.Request) {
	c := n.requested(w, r)
	if c == nil {
		return
	}
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	command := r.URL.Query()["command"]
	if len(command) == 0 {
		http.Error(w, "exec: no command", http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, executor{c}, r.PathValue("pod"), "", c.spec.Name, command,
		options, streamIdle, streamCreation, remotecommand.SupportedStreamingProtocols)
}

// executor runs commands in one container.
type executor struct{ container *container }

// ExecInContainer implements remotecommand.Executor. There are no terminals here:
// a command that asks for one gets pipes.
func (e executor) ExecInContainer(ctx context.Context, _, _, _ string, command []string, in io.Reader,
	out, errs io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration,
) error {
	err := e.container.exec(ctx, command, in, writer(out), writer(errs))
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return utilexec.CodeExitError{Err: err, Code: exitCode(exit)}
	}
	return err
}

// writer is nil for a stream that the client did not ask for.
func writer(w io.WriteCloser) io.Writer {
	if w == nil {
		return nil
	}
	return w
}

func (n *Node) serveLogs(w http.ResponseWriter, r *http.Request) {
	c := n.requested(w, r)
	if c == nil {
		return
	}
	options, err := parseLogOptions(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	path := c.logPath()
	if options.previous {
		path += ".previous"
	}
	w.Header().Set("Content-Type", "text/plain")
	if err := copyLog(r.Context(), &flushWriter{w, http.NewResponseController(w)}, path, options, c.ended); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// ended tells whether the present run of the container is over.
func (c *container) ended() bool {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	return c.process == nil
}

// parseLogOptions reads PodLogOptions as they arrive at a kubelet.
func parseLogOptions(q url.Values) (o logOptions, err error) {
	flag := func(name string, to *bool) {
		if text := q.Get(name); text != "" && err == nil {
			*to, err = strconv.ParseBool(text)
		}
	}
	number := func(name string, unset int) int {
		n := unset
		if text := q.Get(name); text != "" && err == nil {
			n, err = strconv.Atoi(text)
		}
		return n
	}
	flag("previous", &o.previous)
	flag("follow", &o.follow)
	flag("timestamps", &o.timestamps)
	o.tail, o.limit = number("tailLines", -1), number("limitBytes", 0)
	if seconds := number("sinceSeconds", 0); seconds > 0 {
		o.since = time.Now().Add(-time.Duration(seconds) * time.Second)
	}
	if text := q.Get("sinceTime"); text != "" && err == nil {
		o.since, err = time.Parse(time.RFC3339, text)
	}
	return o, err
}

// flushWriter sends every line at once, for those who follow.
type flushWriter struct {
	w     io.Writer
	flush *http.ResponseController
}

func (f *flushWriter) Write(data []byte) (int, error) {
	n, err := f.w.Write(data)
	if err == nil {
		err = f.flush.Flush()
	}
	return n, err
}
