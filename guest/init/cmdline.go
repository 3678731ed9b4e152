package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// options are the words of the kernel's command line that init understands.
type options struct {
	agent    string
	hostname string
	address  netip.Prefix
	gateway  netip.Addr
	modules  []string
	term     string
	rows     uint16
	cols     uint16
	thp      bool
	holdKVM  bool
	network  string // how: netAuto and so on
	root     rootOptions
}

func parseCmdline(line string) options {
	o := options{hostname: "godwit", term: "linux"}
	for _, word := range strings.Fields(line) {
		key, value, _ := strings.Cut(word, "=")
		var err error
		switch key {
		case "godwit.agent":
			o.agent = value
		case "godwit.hostname":
			o.hostname = value
		case "godwit.ip":
			err = o.parseIP(value)
		case "godwit.modules":
			o.modules = append(o.modules, strings.Split(value, ",")...)
		case "godwit.term":
			o.term = value
		case "godwit.winsize":
			_, err = fmt.Sscanf(value, "%dx%d", &o.rows, &o.cols)
		case "godwit.holdkvm":
			o.holdKVM = true
		case "godwit.thp":
			o.thp = true
		case "root":
			o.root.device = value
		case "rootfstype":
			o.root.fstype = value
		case "rootflags":
			o.root.flags = value
		case "rootwait":
			o.root.wait = true
		case "init":
			o.root.init = value
		case "rw", "ro":
			o.root.rw = key == "rw"
		}
		if err != nil {
			complain(fmt.Errorf("%s on the kernel command line: %w", word, err))
		}
	}
	return o
}

// parseIP reads dhcp, off, or ADDRESS/LENGTH[,GATEWAY].
func (o *options) parseIP(s string) (err error) {
	if s == netDHCP || s == netOff {
		o.network = s
		return nil
	}
	o.network = netStatic
	o.address, o.gateway, err = parseIP(s)
	if err != nil {
		o.network = netOff
	}
	return err
}

// parseIP reads ADDRESS/LENGTH[,GATEWAY].
func parseIP(s string) (netip.Prefix, netip.Addr, error) {
	a, g, more := strings.Cut(s, ",")
	address, err := netip.ParsePrefix(a)
	if err != nil || !address.Addr().Is4() {
		return netip.Prefix{}, netip.Addr{}, errors.New("want dhcp, off, or an IPv4 address and prefix length such as 10.0.0.2/24")
	}
	if !more {
		return address, netip.Addr{}, nil
	}
	gateway, err := netip.ParseAddr(g)
	if err != nil || !gateway.Is4() {
		return address, netip.Addr{}, fmt.Errorf("want an IPv4 address as gateway")
	}
	return address, gateway, nil
}
