//go:build linux

package kubelet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// probe runs the container's probes while one process of it lives. As with a
// kubelet the others wait for the startup probe.
func (c *container) probe(ctx context.Context) {
	if p := c.spec.StartupProbe; p != nil {
		if !c.watch(ctx, p, func(ok bool) bool { return !ok }) {
			return
		}
		c.set(func() { c.started, c.ready = true, c.spec.ReadinessProbe == nil })
	}
	if p := c.spec.LivenessProbe; p != nil {
		go c.watch(ctx, p, func(ok bool) bool { return ok })
	}
	if p := c.spec.ReadinessProbe; p != nil {
		c.watch(ctx, p, func(ok bool) bool {
			c.set(func() { c.ready = ok })
			return true
		})
	}
}

func (c *container) set(change func()) {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	if c.process == nil {
		return
	}
	before, started := c.ready, c.started
	change()
	if c.ready != before || c.started != started {
		c.pod.change()
	}
}

// watch probes again and again and tells what the thresholds make of the results,
// as long as verdict wants to know more. A liveness or startup probe that has failed
// ends the process. It returns whether the last result was good.
func (c *container) watch(ctx context.Context, p *corev1.Probe, more func(ok bool) bool) bool {
	wait := time.Duration(p.InitialDelaySeconds) * time.Second
	good, bad := int32(0), int32(0)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
		wait = time.Duration(cmp.Or(p.PeriodSeconds, 10)) * time.Second
		if err := c.try(ctx, p); err == nil {
			good, bad = good+1, 0
		} else {
			good, bad = 0, bad+1
		}
		switch {
		case ctx.Err() != nil:
			return false
		case good >= cmp.Or(p.SuccessThreshold, 1):
			if !more(true) {
				return true
			}
		case bad >= cmp.Or(p.FailureThreshold, 3):
			if p != c.spec.ReadinessProbe {
				c.kill()
				return false
			}
			if !more(false) {
				return false
			}
		}
	}
}

func (c *container) try(ctx context.Context, p *corev1.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(cmp.Or(p.TimeoutSeconds, 1))*time.Second)
	defer cancel()
	switch {
	case p.Exec != nil:
		return c.exec(ctx, p.Exec.Command, nil, nil, nil)
	case p.HTTPGet != nil:
		return c.get(ctx, p.HTTPGet)
	case p.TCPSocket != nil:
		addr, err := c.target(p.TCPSocket.Host, p.TCPSocket.Port)
		if err != nil {
			return err
		}
		conn, err := c.pod.node.opts.Node.DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	return errors.New("this test node has no such probe")
}

// get asks from the node, where a kubelet is.
func (c *container) get(ctx context.Context, a *corev1.HTTPGetAction) error {
	addr, err := c.target(a.Host, a.Port)
	if err != nil {
		return err
	}
	if a.Scheme == corev1.URISchemeHTTPS {
		return errors.New("this test node probes no HTTPS")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+a.Path, http.NoBody)
	if err != nil {
		return err
	}
	for _, h := range a.HTTPHeaders {
		req.Header.Add(h.Name, h.Value)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: c.pod.node.opts.Node.DialContext, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("%s: %s", req.URL, resp.Status)
	}
	return nil
}

// target is where a probe goes: the pod, unless it names another host.
func (c *container) target(host string, port intstr.IntOrString) (string, error) {
	number := port.IntValue()
	for _, p := range c.spec.Ports {
		if port.Type == intstr.String && p.Name == port.StrVal {
			number = int(p.ContainerPort)
		}
	}
	if number == 0 {
		return "", fmt.Errorf("container %s has no port %s", c.spec.Name, port.String())
	}
	if host == "" {
		host = c.pod.addrs[0].String()
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return "", fmt.Errorf("probe of container %s: %w", c.spec.Name, err)
	}
	return net.JoinHostPort(host, strconv.Itoa(number)), nil
}
