package initramfs

import (
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/godwit-vmm/godwit/guest"
	"github.com/godwit-vmm/godwit/guest/kmod"
)

// imageRecords are the files of an image with these programs in it. Parent
// folders are made by whoever writes them.
func imageRecords(kernel guest.Kernel, image string, programs []cpio.Record) ([]cpio.Record, error) {
	records := append(programs,
		// The kernel opens the console for init before devtmpfs is there.
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.CharDev("dev/null", 0o666, 1, 3),
		cpio.StaticFile("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644),
		cpio.StaticFile("etc/group", "root:x:0:\n", 0o644),
		cpio.StaticFile("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644),
		cpio.Directory("root", 0o700),
		cpio.Directory("tmp", 0o1777),
	)
	for _, dir := range []string{"proc", "sys", "run", "mnt", "newroot", "usr/bin", "var/log"} {
		records = append(records, cpio.Directory(dir, 0o755))
	}
	// Not in /sbin, where the kernel would run modprobe many times while it
	// starts, for modules that it can do without: init tells it the path.
	for _, name := range []string{"modprobe", "poweroff", "reboot", "halt", "nproc"} {
		// Relative, because init may put all this into another folder.
		records = append(records, cpio.Symlink(path.Join("bin", name), "../init"))
	}
	modules, err := moduleRecords(kernel, image)
	if err != nil {
		return nil, err
	}
	return append(records, modules...), nil
}

// moduleRecords are the modules that an image needs, with their indexes.
func moduleRecords(kernel guest.Kernel, image string) ([]cpio.Record, error) {
	infos := make(map[string]kmod.Modinfo)
	files, err := filepath.Glob(filepath.Join(kernel.ModulesDir, "*.ko"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		info, err := kmod.ReadModinfo(f)
		if err != nil {
			return nil, err
		}
		infos[info.Name] = info
	}
	wanted := guest.GuestModules()
	if image == guest.HostImage {
		wanted = append(wanted, guest.HostModules()...)
	}
	var names []string
	for _, w := range wanted {
		names = append(names, kmod.Closure(infos, w)...)
	}
	slices.Sort(names)
	to := path.Join("lib/modules", kernel.Version)
	present := make(map[string]kmod.Modinfo)
	records := []cpio.Record{cpio.Directory(to, 0o755)}
	for _, name := range slices.Compact(names) {
		info, ok := infos[name]
		if !ok {
			continue // built in
		}
		present[name] = info
		content, err := os.ReadFile(filepath.Join(kernel.ModulesDir, name+".ko"))
		if err != nil {
			return nil, err
		}
		records = append(records, cpio.StaticFile(path.Join(to, name+".ko"), string(content), 0o644))
	}
	dep, alias := kmod.Indexes(present)
	return append(records,
		cpio.StaticFile(path.Join(to, kmod.DepFile), dep, 0o644),
		cpio.StaticFile(path.Join(to, kmod.AliasFile), alias, 0o644),
	), nil
}
