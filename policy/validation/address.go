package validation

import (
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ipBlock demands exceptions strictly inside the block. An exception as large as
// the block would leave nothing, which the API calls a mistake.
func ipBlock(b *networkingv1.IPBlock, path *field.Path) field.ErrorList {
	if b.CIDR == "" {
		return field.ErrorList{field.Required(path.Child("cidr"), "")}
	}
	block, errs := cidr(b.CIDR, path.Child("cidr"))
	for i, value := range b.Except {
		p := path.Child("except").Index(i)
		except, bad := cidr(value, p)
		errs = append(errs, bad...)
		if len(bad) == 0 && block.IsValid() && !strictlyInside(block, except) {
			errs = append(errs, field.Invalid(p, value, "must be a strict subset of `cidr`: "+b.CIDR))
		}
	}
	return errs
}

// strictlyInside is false across address families: no IPv4 address is in an IPv6
// prefix.
func strictlyInside(outer, inner netip.Prefix) bool {
	return outer.Contains(inner.Addr()) && inner.Bits() > outer.Bits()
}

// cidr parses by the rules of the package comment and masks the result. The
// prefix is the zero Prefix when there are errors.
func cidr(value string, path *field.Path) (netip.Prefix, field.ErrorList) {
	prefix, err := netip.ParsePrefix(value)
	if err == nil && !prefix.Addr().Is4In6() {
		return prefix.Masked(), nil
	}
	errs := validation.IsValidCIDRForLegacyField(path, value, true, nil)
	if len(errs) == 0 { // the two parsers disagree; ours is the one that counts
		errs = field.ErrorList{field.Invalid(path, value, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")}
	}
	return netip.Prefix{}, errs
}

// address parses one IP address as the API does for pods: any spelling of IPv6,
// but no leading zeros, no IPv4-mapped IPv6 and no zone.
func address(value string, path *field.Path) (netip.Addr, field.ErrorList) {
	addr, err := netip.ParseAddr(value)
	if err == nil && !addr.Is4In6() && addr.Zone() == "" {
		return addr, nil
	}
	errs := validation.IsValidIPForLegacyField(path, value, true, nil)
	if len(errs) == 0 {
		errs = field.ErrorList{field.Invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")}
	}
	return netip.Addr{}, errs
}

// onePerFamily checks the addresses of a list and that it has at most one of
// each family. valueAt returns the i-th address and its field.
func onePerFamily(n int, valueAt func(int) (string, *field.Path)) field.ErrorList {
	var errs field.ErrorList
	seen := map[int]string{} // by address length in bits
	for i := range n {
		value, path := valueAt(i)
		addr, bad := address(value, path)
		errs = append(errs, bad...)
		if len(bad) > 0 {
			continue
		}
		if first, ok := seen[addr.BitLen()]; ok {
			errs = append(errs, field.Invalid(path, value, "may specify no more than one IP for each IP family; "+first+" is of the same family"))
			continue
		}
		seen[addr.BitLen()] = value
	}
	return errs
}
