package validation

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// protocols are the ones that have ports a policy or a container can name, in
// the order in which the API server prints them.
var protocols = []corev1.Protocol{corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP}

func protocol(p corev1.Protocol, path *field.Path) field.ErrorList {
	for _, known := range protocols {
		if p == known {
			return nil
		}
	}
	return field.ErrorList{field.NotSupported(path, p, protocols)}
}

func policyPorts(ports []networkingv1.NetworkPolicyPort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range ports {
		errs = append(errs, policyPort(&ports[i], path.Index(i))...)
	}
	return errs
}

func policyPort(port *networkingv1.NetworkPolicyPort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if port.Protocol != nil {
		errs = append(errs, protocol(*port.Protocol, path.Child("protocol"))...)
	}
	switch {
	case port.Port == nil:
		if port.EndPort != nil {
			errs = append(errs, field.Invalid(path.Child("endPort"), *port.EndPort, "may not be specified when `port` is not specified"))
		}
	case port.Port.Type == intstr.Int:
		errs = append(errs, numericPort(port.Port.IntVal, port.EndPort, path)...)
	default:
		if port.EndPort != nil {
			errs = append(errs, field.Invalid(path.Child("endPort"), *port.EndPort, "may not be specified when `port` is non-numeric"))
		}
		errs = append(errs, portName(port.Port.StrVal, path.Child("port"))...)
	}
	return errs
}

func numericPort(port int32, end *int32, path *field.Path) field.ErrorList {
	errs := portNumber(port, path.Child("port"))
	if end == nil {
		return errs
	}
	if *end < port {
		errs = append(errs, field.Invalid(path.Child("endPort"), *end, "must be greater than or equal to `port`"))
	}
	return append(errs, portNumber(*end, path.Child("endPort"))...)
}

func portNumber(port int32, path *field.Path) field.ErrorList {
	return invalid(path, port, validation.IsValidPortNum(int(port)))
}

// portName checks for an IANA service name (RFC 6335 section 5.1), in lower case.
func portName(name string, path *field.Path) field.ErrorList {
	return invalid(path, name, validation.IsValidPortName(name))
}

// invalid makes one error of each message about the same value.
func invalid(path *field.Path, value any, messages []string) field.ErrorList {
	var errs field.ErrorList
	for _, msg := range messages {
		errs = append(errs, field.Invalid(path, value, msg))
	}
	return errs
}
