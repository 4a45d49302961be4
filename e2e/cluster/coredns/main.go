// CoreDNS with only the plugins a test cluster needs: a small binary that builds in a minute.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

// The order of the chain: what neither hosts nor kubernetes answers is refused by template.
func init() {
	dnsserver.Directives = []string{
		"bind", "ready", "errors", "cache", "hosts", "kubernetes", "template",
	}
}

func main() { coremain.Run() }
