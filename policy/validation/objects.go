package validation

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Namespace checks the metadata of a namespace.
func Namespace(ns *corev1.Namespace) field.ErrorList {
	errs := apivalidation.ValidateObjectMeta(&ns.ObjectMeta, false, apivalidation.ValidateNamespaceName, field.NewPath("metadata"))
	return ordered(errs)
}

// Pod checks what a decision reads of a pod: metadata, addresses and container
// ports. It is much laxer than an API server about the rest: a manifest for
// policy tests need not name an image, or have containers at all.
func Pod(pod *corev1.Pod) field.ErrorList {
	errs := apivalidation.ValidateObjectMeta(&pod.ObjectMeta, true, apivalidation.NameIsDNSSubdomain, field.NewPath("metadata"))
	spec := field.NewPath("spec")
	errs = append(errs, containers(pod.Spec.InitContainers, spec.Child("initContainers"))...)
	errs = append(errs, containers(pod.Spec.Containers, spec.Child("containers"))...)
	return ordered(append(errs, podStatus(&pod.Status, field.NewPath("status"))...))
}

func containers(list []corev1.Container, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range list {
		errs = append(errs, containerPorts(list[i].Ports, path.Index(i).Child("ports"))...)
	}
	return errs
}

func containerPorts(ports []corev1.ContainerPort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	names := map[string]bool{}
	for i := range ports {
		port, p := &ports[i], path.Index(i)
		if port.Name != "" {
			errs = append(errs, portName(port.Name, p.Child("name"))...)
			if names[port.Name] {
				errs = append(errs, field.Duplicate(p.Child("name"), port.Name))
			}
			names[port.Name] = true
		}
		if port.ContainerPort == 0 {
			errs = append(errs, field.Required(p.Child("containerPort"), ""))
		} else {
			errs = append(errs, portNumber(port.ContainerPort, p.Child("containerPort"))...)
		}
		if port.Protocol != "" { // empty is TCP
			errs = append(errs, protocol(port.Protocol, p.Child("protocol"))...)
		}
	}
	return errs
}

func podStatus(status *corev1.PodStatus, path *field.Path) field.ErrorList {
	errs := onePerFamily(len(status.PodIPs), func(i int) (string, *field.Path) {
		return status.PodIPs[i].IP, path.Child("podIPs").Index(i).Child("ip")
	})
	errs = append(errs, onePerFamily(len(status.HostIPs), func(i int) (string, *field.Path) {
		return status.HostIPs[i].IP, path.Child("hostIPs").Index(i).Child("ip")
	})...)
	if len(status.PodIPs) > 0 {
		errs = append(errs, firstIs(status.PodIP, status.PodIPs[0].IP, path.Child("podIP"))...)
	} else if status.PodIP != "" {
		_, bad := address(status.PodIP, path.Child("podIP"))
		errs = append(errs, bad...)
	}
	if len(status.HostIPs) > 0 {
		errs = append(errs, firstIs(status.HostIP, status.HostIPs[0].IP, path.Child("hostIP"))...)
	} else if status.HostIP != "" {
		_, bad := address(status.HostIP, path.Child("hostIP"))
		errs = append(errs, bad...)
	}
	return errs
}

// firstIs checks a singular field against the first entry of its plural. The API
// keeps them equal; a manifest where they differ leaves open which one is meant.
func firstIs(singular, first string, path *field.Path) field.ErrorList {
	if singular == "" || singular == first {
		return nil
	}
	return field.ErrorList{field.Invalid(path, singular, "must be the first entry of its plural field, which is "+first)}
}

// Node checks the metadata, addresses and pod ranges of a node.
func Node(node *corev1.Node) field.ErrorList {
	errs := apivalidation.ValidateObjectMeta(&node.ObjectMeta, false, apivalidation.NameIsDNSSubdomain, field.NewPath("metadata"))
	errs = append(errs, nodePodCIDRs(&node.Spec, field.NewPath("spec"))...)
	for i, a := range node.Status.Addresses {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			continue // host names are no IP addresses
		}
		_, bad := address(a.Address, field.NewPath("status", "addresses").Index(i).Child("address"))
		errs = append(errs, bad...)
	}
	return ordered(errs)
}

func nodePodCIDRs(spec *corev1.NodeSpec, path *field.Path) field.ErrorList {
	if len(spec.PodCIDRs) == 0 {
		if spec.PodCIDR == "" {
			return nil
		}
		_, errs := cidr(spec.PodCIDR, path.Child("podCIDR"))
		return errs
	}
	errs := firstIs(spec.PodCIDR, spec.PodCIDRs[0], path.Child("podCIDR"))
	var seen []netip.Prefix
	for i, value := range spec.PodCIDRs {
		p := path.Child("podCIDRs").Index(i)
		prefix, bad := cidr(value, p)
		errs = append(errs, bad...)
		if len(bad) > 0 {
			continue
		}
		if slices.ContainsFunc(seen, func(o netip.Prefix) bool { return o.Addr().Is4() == prefix.Addr().Is4() }) {
			errs = append(errs, field.Invalid(p, value, "may specify no more than one CIDR for each IP family"))
		}
		seen = append(seen, prefix)
	}
	return errs
}

// ordered sorts neighbouring errors about the same field. Errors about labels and
// annotations come in the random order of a map; all others keep theirs.
func ordered(errs field.ErrorList) field.ErrorList {
	for start := 0; start < len(errs); {
		end := start + 1
		for end < len(errs) && errs[end].Field == errs[start].Field {
			end++
		}
		slices.SortStableFunc(errs[start:end], func(a, b *field.Error) int { return strings.Compare(a.Error(), b.Error()) })
		start = end
	}
	return errs
}
