package netflag

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/devices/virtio/limit"
	"github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/devices/virtio/net/pcap"
	"github.com/godwit-vmm/godwit/devices/virtio/net/tap"
	"github.com/godwit-vmm/godwit/devices/virtio/net/user"
	"github.com/godwit-vmm/godwit/internal/testenv"
)

func TestParse(t *testing.T) {
	rate := func(bytes, packets uint64) limit.Config {
		return limit.Config{Bandwidth: limit.Rate{PerSecond: bytes}, Operations: limit.Rate{PerSecond: packets}}
	}
	forward := func(protocol, host string, guest uint16) user.Forward {
		return user.Forward{Protocol: protocol, Host: netip.MustParseAddrPort(host), Guest: guest}
	}
	for text, want := range map[string]Net{
		"tap":                                {Kind: Tap},
		"tap:vm0":                            {Kind: Tap, Tap: tap.Config{Name: "vm0"}},
		"tap:vm0,bridge=br0,queues=4":        {Kind: Tap, Tap: tap.Config{Name: "vm0", Bridge: "br0", Queues: 4}},
		"tap,mac=02:00:00:00:00:01":          {Kind: Tap, MAC: net.MAC{2, 0, 0, 0, 0, 1}},
		"tap,mtu=9000":                       {Kind: Tap, MTU: 9000},
		"tap,mtu=68":                         {Kind: Tap, MTU: 68},
		"tap,rx-bandwidth=10M,tx-packets=5":  {Kind: Tap, Receive: rate(10<<20, 0), Send: rate(0, 5)},
		"user,tx-bandwidth=1,rx-packets=7":   {Kind: User, Receive: rate(0, 7), Send: rate(1, 0)},
		"user":                               {Kind: User},
		"user,mtu=1400":                      {Kind: User, MTU: 1400},
		"user,forward=8080:80":               {Kind: User, User: user.Settings{Forwards: []user.Forward{forward("tcp", "127.0.0.1:8080", 80)}}},
		"user,forward=tcp:127.0.0.1:8080:80": {Kind: User, User: user.Settings{Forwards: []user.Forward{forward("tcp", "127.0.0.1:8080", 80)}}},
		"user,forward=0.0.0.0:1:2,forward=udp:53:5353,forward=tcp:[::1]:3:4": {Kind: User, User: user.Settings{Forwards: []user.Forward{
			forward("tcp", "0.0.0.0:1", 2), forward("udp", "127.0.0.1:53", 5353), forward("tcp", "[::1]:3", 4),
		}}},
	} {
		got, err := Parse(text)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Parse(%q) = %+v, %v, want %+v", text, got, err, want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    "want tap or user",
		"bridge":                              "want tap or user",
		"tap:":                                "no name behind tap",
		"user:x":                              "have no name",
		"tap,":                                "not of the form",
		"tap,queues":                          "not of the form",
		"tap,queues=":                         "not of the form",
		"tap,queues=2,queues=3":               "given twice",
		"tap,queues=0":                        "from 1 to 16",
		"tap,queues=17":                       "from 1 to 16",
		"tap,queues=x":                        "from 1 to 16",
		"tap,speed=1":                         "want bridge, mac, mtu, queues, rx-bandwidth, rx-packets, tx-bandwidth, tx-packets",
		"tap,forward=1:2":                     "no such option of tap networks",
		"user,queues=2":                       "no such option of user networks",
		"user,bridge=br0":                     "no such option of user networks",
		"tap,mac=1":                           "no MAC address",
		"tap,mac=ff:ff:ff:ff:ff:ff":           "not the address of one",
		"tap,mtu=67":                          "from 68 to 65521",
		"user,mtu=575":                        "from 576 to 65521",
		"tap,rx-bandwidth=fast":               "not a size",
		"tap,rx-bandwidth=0":                  "from 1 to",
		"tap,rx-bandwidth=2000000G":           "from 1 to",
		"tap,tx-packets=-1":                   "from 1 to",
		"tap,tx-packets=99999999999999999999": "from 1 to",
		"user,forward=80":                     "want [tcp:|udp:]",
		"user,forward=tcp:80":                 "want [tcp:|udp:]",
		"user,forward=0:80":                   "no address and port of the host",
		"user,forward=host:1:80":              "no address and port of the host",
		"user,forward=1:0":                    "no port of the guest",
		"user,forward=1:65536":                "no port of the guest",
		"user,forward=sctp:1:2":               "no address and port of the host",
	} {
		if n, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q) = %+v, %v, want an error with %q", text, n, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"tap:vm0,queues=2,mtu=9000", "user,forward=udp:[::1]:53:53,mac=02:00:00:00:00:01", "tap,rx-bandwidth=1M"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := Parse(text)
		if err != nil {
			return
		}
		if err := n.User.Check(); err != nil {
			t.Errorf("Parse(%q) = %+v, which is refused later: %v", text, n, err)
		}
		for _, c := range []limit.Config{n.Receive, n.Send} {
			if _, err := limit.New(c, nil); err != nil {
				t.Errorf("Parse(%q) = %+v, which is refused later: %v", text, n, err)
			}
		}
	})
}

func TestList(t *testing.T) {
	var l List
	for _, text := range []string{"tap", "user,forward=1:2"} {
		if err := l.Set(text); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Set("none"); err == nil {
		t.Error("a wrong value went through")
	}
	if len(l) != 2 || l.String() != "tap user" || l.Type() != "NET" {
		t.Errorf("list %+v: %s %s", l, l.String(), l.Type())
	}
}

// TestOpen makes devices of what was parsed.
func TestOpen(t *testing.T) {
	if os.Getuid() != 0 {
		testenv.Lacks(t, "making tap interfaces needs root")
	}
	runtime.LockOSThread() // without Unlock: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	capture, err := pcap.Create(filepath.Join(t.TempDir(), "out.pcapng"))
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close()
	for text, want := range map[string]net.MAC{
		"tap:vm0,mtu=1280,queues=2":          net.DefaultMAC("vm", 3),
		"tap,mtu=1280,mac=02:00:00:00:00:01": {2, 0, 0, 0, 0, 1},
	} {
		n, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		d, err := n.Open("vm", 3, capture, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.MAC(); got != want {
			t.Errorf("%s: MAC %v, want %v", text, got, want)
		}
		var mtu [2]byte
		d.ReadConfig(10, mtu[:])
		if got := int(mtu[0]) | int(mtu[1])<<8; got != n.MTU {
			t.Errorf("%s: MTU %d, want %d", text, got, n.MTU)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := (Net{Kind: Tap, Tap: tap.Config{Name: "lo"}}).Open("vm", 0, nil, nil); err == nil {
		t.Error("the loopback interface was opened as a tap")
	}
	t.Setenv("PATH", "")
	if _, err := (Net{Kind: User}).Open("vm", 0, nil, nil); err == nil || !strings.Contains(err.Error(), user.Program) {
		t.Errorf("user networking without its program: %v", err)
	}
}
