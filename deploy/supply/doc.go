// Package supply tests what checks the supply chain: .ci/vuln and .ci/sbom.
package supply
