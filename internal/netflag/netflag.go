// Package netflag is the flag --net: what a user says about a network device,
// and how that becomes one.
package netflag

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/devices/virtio/net/pcap"
	"github.com/godwit-vmm/godwit/devices/virtio/net/tap"
	"github.com/godwit-vmm/godwit/devices/virtio/net/user"
	"github.com/godwit-vmm/godwit/internal/flags"
)

// Usage is what help says about the flag.
const Usage = `network device, may be given several times:
tap[:NAME][,bridge=BRIDGE][,queues=N] or user[,forward=[tcp|udp:][ADDRESS:]PORT:GUESTPORT...];
for both [,mac=MAC][,mtu=N][,rx-bandwidth=BYTES][,tx-bandwidth=BYTES][,rx-packets=N][,tx-packets=N], a second`

// Kind is what a device is connected to.
type Kind string

// The kinds.
const (
	Tap  Kind = "tap"
	User Kind = "user"
)

// Net is a parsed flag.
type Net struct {
	Kind Kind
	// Tap or User has the settings of that kind. The guest's MAC address and
	// the MTU of the latter are those below.
	Tap  tap.Config
	User user.Settings
	// MAC of the guest; zero stands for net.DefaultMAC.
	MAC net.MAC
	// MTU in bytes; 0 stands for that of the kind.
	MTU int
	// Receive and Send are limits, as seen from the guest.
	Receive, Send limit.Config
}

// Parse parses the flag.
func Parse(text string) (Net, error) {
	var n Net
	words := strings.Split(text, ",")
	if err := n.parseKind(words[0]); err != nil {
		return n, fmt.Errorf("%q: %w", text, err)
	}
	seen := make(map[string]bool)
	for _, option := range words[1:] {
		key, value, ok := strings.Cut(option, "=")
		if !ok || value == "" {
			return n, fmt.Errorf("%q: %q is not of the form OPTION=VALUE", text, option)
		}
		if seen[key] && key != "forward" {
			return n, fmt.Errorf("%q: %s is given twice", text, key)
		}
		seen[key] = true
		if err := n.set(key, value); err != nil {
			return n, fmt.Errorf("%q: %s: %w", text, key, err)
		}
	}
	return n, nil
}

func (n *Net) parseKind(text string) error {
	kind, name, named := strings.Cut(text, ":")
	n.Kind, n.Tap.Name = Kind(kind), name
	switch {
	case n.Kind != Tap && n.Kind != User:
		return fmt.Errorf("%q is no kind of network: want tap or user", kind)
	case n.Kind == User && named:
		return errors.New("user networks have no name")
	case named && name == "":
		return errors.New("no name behind tap: leave out the colon for a new interface")
	}
	return nil
}

// option is what can be said about a device, and with which kind.
type option struct {
	kind Kind // "" for both
	set  func(*Net, string) error
}

var options = map[string]option{
	"bridge": {Tap, func(n *Net, v string) error { n.Tap.Bridge = v; return nil }},
	"queues": {Tap, func(n *Net, v string) error { return number(&n.Tap.Queues, v, 1, net.MaxPairs) }},
	"forward": {User, func(n *Net, v string) error {
		f, err := parseForward(v)
		n.User.Forwards = append(n.User.Forwards, f)
		return err
	}},
	"mac": {"", func(n *Net, v string) (err error) {
		n.MAC, err = net.ParseMAC(v)
		return err
	}},
	"mtu":          {"", func(n *Net, v string) error { return number(&n.MTU, v, n.minMTU(), net.MaxMTU) }},
	"rx-bandwidth": {"", func(n *Net, v string) error { return bandwidth(&n.Receive.Bandwidth, v) }},
	"tx-bandwidth": {"", func(n *Net, v string) error { return bandwidth(&n.Send.Bandwidth, v) }},
	"rx-packets":   {"", func(n *Net, v string) error { return packets(&n.Receive.Operations, v) }},
	"tx-packets":   {"", func(n *Net, v string) error { return packets(&n.Send.Operations, v) }},
}

func (n *Net) set(key, value string) error {
	o, ok := options[key]
	if !ok || o.kind != "" && o.kind != n.Kind {
		var known []string
		for key, o := range options {
			if o.kind == "" || o.kind == n.Kind {
				known = append(known, key)
			}
		}
		slices.Sort(known)
		return fmt.Errorf("there is no such option of %s networks: want %s", n.Kind, strings.Join(known, ", "))
	}
	return o.set(n, value)
}

func (n *Net) minMTU() int {
	if n.Kind == User {
		return user.MinMTU
	}
	return net.MinMTU
}

func number(to *int, text string, low, high int) (err error) {
	if *to, err = strconv.Atoi(text); err != nil || *to < low || *to > high {
		return fmt.Errorf("%q, want a number from %d to %d", text, low, high)
	}
	return nil
}

func bandwidth(to *limit.Rate, text string) error {
	var s flags.Size
	if err := s.Set(text); err != nil {
		return err
	}
	return rate(to, uint64(s), text)
}

func packets(to *limit.Rate, text string) error {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		n = math.MaxUint64
	}
	return rate(to, n, text)
}

func rate(to *limit.Rate, n uint64, text string) error {
	if n == 0 || n > limit.MaxRate {
		return fmt.Errorf("%q, want a number from 1 to %d a second", text, uint64(limit.MaxRate))
	}
	to.PerSecond = n
	return nil
}

// parseForward parses [tcp:|udp:][ADDRESS:]PORT:GUESTPORT.
func parseForward(text string) (f user.Forward, err error) {
	const form = "want [tcp:|udp:][ADDRESS:]PORT:GUESTPORT, such as tcp:127.0.0.1:8080:80"
	f.Protocol = "tcp"
	rest := text
	if protocol, after, ok := strings.Cut(text, ":"); ok && (protocol == "tcp" || protocol == "udp") {
		f.Protocol, rest = protocol, after
	}
	at := strings.LastIndex(rest, ":")
	if at < 0 {
		return f, fmt.Errorf("%q: %s", text, form)
	}
	host, guest := rest[:at], rest[at+1:]
	if !strings.Contains(host, ":") {
		// What is not meant for others is not shown to others.
		host = "127.0.0.1:" + host
	}
	if f.Host, err = netip.ParseAddrPort(host); err != nil || f.Host.Port() == 0 {
		return f, fmt.Errorf("%q: %q is no address and port of the host: %s", text, host, form)
	}
	port, err := strconv.ParseUint(guest, 10, 16)
	if err != nil || port == 0 {
		return f, fmt.Errorf("%q: %q is no port of the guest: %s", text, guest, form)
	}
	f.Guest = uint16(port)
	return f, nil
}

// Open makes the device, the one of the given index among those of the machine
// name. It may be called on another goroutine while the machine is made: for
// user networking it waits some milliseconds for another process.
func (n Net) Open(name string, index int, capture *pcap.File, warn func(error)) (*net.Device, error) {
	return n.OpenOn(n.backend, name, index, capture, warn)
}

// OpenOn is Open with a back end of the caller's making.
func (n Net) OpenOn(backend func(net.MAC) (net.Backend, error), name string, index int, capture *pcap.File, warn func(error)) (*net.Device, error) {
	c := net.Config{MAC: n.MAC, Receive: n.Receive, Send: n.Send, Warn: warn}
	if c.MAC == (net.MAC{}) {
		c.MAC = net.DefaultMAC(name, index)
	}
	var err error
	if capture != nil {
		if c.Capture, err = capture.Interface(fmt.Sprintf("%s-net%d", name, index)); err != nil {
			return nil, err
		}
	}
	if c.Backend, err = backend(c.MAC); err != nil {
		return nil, err
	}
	return net.New(c)
}

func (n Net) backend(mac net.MAC) (net.Backend, error) {
	if n.Kind == User {
		n.User.MAC, n.User.MTU = mac, n.MTU
		return user.Start(user.Config{Settings: n.User})
	}
	n.Tap.MTU = n.MTU
	return tap.Open(n.Tap)
}

// List is the flag, given any number of times. It is a pflag.Value.
type List []Net

// Set adds one.
func (l *List) Set(text string) error {
	n, err := Parse(text)
	if err != nil {
		return err
	}
	*l = append(*l, n)
	return nil
}

// String names the kinds.
func (l *List) String() string {
	var kinds []string
	for _, n := range *l {
		kinds = append(kinds, string(n.Kind))
	}
	return strings.Join(kinds, " ")
}

// Type is what help calls a value.
func (l *List) Type() string { return "NET" }
