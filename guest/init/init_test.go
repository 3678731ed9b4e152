package main

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseCmdline(t *testing.T) {
	got := parseCmdline("console=ttyS0 godwit.agent=ttyS1 godwit.hostname=h1 godwit.ip=10.77.0.1/24,10.77.0.254 " +
		"godwit.modules=a,b quiet godwit.modules=c godwit.term=xterm godwit.winsize=33x99 godwit.thp godwit.holdkvm " +
		"root=LABEL=a=b ro rw rootfstype=ext4,xfs rootflags=noatime,data=ordered rootwait init=/bin/sh\n")
	want := options{
		agent:    "ttyS1",
		hostname: "h1",
		address:  netip.MustParsePrefix("10.77.0.1/24"),
		gateway:  netip.MustParseAddr("10.77.0.254"),
		modules:  []string{"a", "b", "c"},
		term:     "xterm",
		rows:     33,
		cols:     99,
		thp:      true,
		holdKVM:  true,
		network:  netStatic,
		root: rootOptions{
			device: "LABEL=a=b", fstype: "ext4,xfs", flags: "noatime,data=ordered", init: "/bin/sh", rw: true, wait: true,
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := parseCmdline(""), (options{hostname: "godwit", term: "linux"}); !reflect.DeepEqual(got, want) {
		t.Errorf("empty: got %+v, want %+v", got, want)
	}
}

func TestNetworkWords(t *testing.T) {
	for line, want := range map[string]string{
		"": netAuto, "godwit.ip=dhcp": netDHCP, "godwit.ip=off": netOff, "godwit.ip=10.0.0.1/8": netStatic, "godwit.ip=nonsense": netOff,
	} {
		if got := parseCmdline(line).network; got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestParseIPRejects(t *testing.T) {
	for _, s := range []string{"", "10.0.0.1", "fe80::1/64", "10.0.0.1/33", "10.0.0.1/8,x", "10.0.0.1/8,fe80::1"} {
		if a, g, err := parseIP(s); err == nil {
			t.Errorf("parseIP(%q) = %v, %v", s, a, g)
		}
	}
}

func TestRouteMessage(t *testing.T) {
	m := routeMessage(netip.MustParseAddr("10.0.0.254"))
	if n := binary.NativeEndian.Uint32(m); int(n) != len(m) {
		t.Errorf("the length says %d of %d bytes", n, len(m))
	}
	if kind := binary.NativeEndian.Uint16(m[4:]); kind != unix.RTM_NEWROUTE {
		t.Errorf("type %d", kind)
	}
	attribute := m[unix.SizeofNlMsghdr+unix.SizeofRtMsg:]
	if !bytes.Equal(attribute, []byte{8, 0, unix.RTA_GATEWAY, 0, 10, 0, 0, 254}) {
		t.Errorf("attribute % x", attribute)
	}
}

func TestCommands(t *testing.T) {
	if status := command("nosuch", nil); status != 1 {
		t.Errorf("an unknown command ends with %d", status)
	}
	if status := command("nproc", nil); status != 0 {
		t.Errorf("nproc ends with %d", status)
	}
}
