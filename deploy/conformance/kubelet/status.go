//go:build linux

package kubelet

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// status is what a kubelet would report now. p.mu is held.
func (p *pod) status() corev1.PodStatus {
	old := &p.object.Status
	s := corev1.PodStatus{QOSClass: old.QOSClass, StartTime: &p.started, ObservedGeneration: p.object.Generation}
	s.ContainerStatuses, s.Phase = p.containerStatuses()
	for _, a := range p.node.opts.Node.Addrs() {
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: a.String()})
	}
	s.HostIP = s.HostIPs[0].IP
	for _, a := range p.addrs {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: a.String()})
	}
	s.PodIP = s.PodIPs[0].IP
	s.Conditions = p.conditions(s.ContainerStatuses)
	return s
}

// containerStatuses also derives the pod's phase (Pod lifecycle, API documentation).
func (p *pod) containerStatuses() ([]corev1.ContainerStatus, corev1.PodPhase) {
	var out []corev1.ContainerStatus
	running, waiting, failed := 0, 0, 0
	for _, c := range p.containers {
		out = append(out, c.status())
		switch {
		case c.state.Terminated != nil && c.state.Terminated.ExitCode != 0:
			failed++
		case c.state.Running != nil:
			running++
		case c.state.Waiting != nil:
			waiting++
		}
	}
	switch {
	case waiting > 0 && running == 0 && p.object.Spec.RestartPolicy != corev1.RestartPolicyNever && !p.crashed():
		return out, corev1.PodPending
	case running > 0 || waiting > 0:
		return out, corev1.PodRunning
	case !p.gone && p.object.Spec.RestartPolicy == corev1.RestartPolicyAlways:
		return out, corev1.PodRunning // to be restarted
	case failed > 0:
		return out, corev1.PodFailed
	}
	return out, corev1.PodSucceeded
}

// crashed tells whether a container waits for its restart.
func (p *pod) crashed() bool {
	for _, c := range p.containers {
		if c.restarts > 0 {
			return true
		}
	}
	return false
}

func (c *container) status() corev1.ContainerStatus {
	s := corev1.ContainerStatus{
		Name: c.spec.Name, Image: c.spec.Image, State: c.state, LastTerminationState: c.last,
		Ready: c.ready, Started: new(c.started), RestartCount: c.restarts,
	}
	if c.state.Running != nil || c.state.Terminated != nil {
		s.ContainerID = c.id()
	}
	if c.image != nil {
		s.ImageID = c.image.Repository + "@this-machine"
	}
	return s
}

// conditions keeps the scheduler's and gives the node's.
func (p *pod) conditions(containers []corev1.ContainerStatus) []corev1.PodCondition {
	ready := corev1.ConditionTrue
	for i := range containers {
		if !containers[i].Ready {
			ready = corev1.ConditionFalse
		}
	}
	out := []corev1.PodCondition{
		p.condition(corev1.PodReadyToStartContainers, corev1.ConditionTrue),
		p.condition(corev1.PodInitialized, corev1.ConditionTrue),
		p.condition(corev1.ContainersReady, ready),
		p.condition(corev1.PodReady, ready),
	}
	for _, c := range p.object.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			out = append(out, c)
		}
	}
	return out
}

// condition remembers since when a condition is what it is. p.mu is held.
func (p *pod) condition(kind corev1.PodConditionType, status corev1.ConditionStatus) corev1.PodCondition {
	c, ok := p.current[kind]
	if !ok || c.Status != status {
		c = corev1.PodCondition{Type: kind, Status: status, LastTransitionTime: metav1.Now(), ObservedGeneration: p.object.Generation}
		p.current[kind] = c
	}
	return c
}
