package guest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// kernelMetapackages depend on the newest kernel for virtual machines: Debian's
// first, then Ubuntu's.
func kernelMetapackages() []string {
	return []string{"linux-image-cloud-amd64", "linux-image-kvm", "linux-image-virtual"}
}

func hasApt() bool {
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return false
		}
	}
	return true
}

// aptKernel downloads and unpacks the kernel that the distribution offers for
// virtual machines. Nothing is installed. If the package lists are missing or
// too old to download from, they are updated.
func aptKernel(ctx context.Context, o Options, temp string) (kernelFiles, error) {
	files, err := aptKernelOnce(ctx, o, temp)
	if err == nil || ctx.Err() != nil {
		return files, err
	}
	o.say("the package lists are missing or old (%v): running apt-get update", err)
	if err := aptUpdate(ctx); err != nil {
		return kernelFiles{}, fmt.Errorf("guest kernel: %w: update the package lists and try again, or give a kernel with --kernel PATH", err)
	}
	files, err = aptKernelOnce(ctx, o, temp)
	if err != nil {
		return kernelFiles{}, fmt.Errorf("guest kernel: %w: give a kernel with --kernel PATH", err)
	}
	return files, nil
}

func aptKernelOnce(ctx context.Context, o Options, temp string) (kernelFiles, error) {
	packages, err := kernelPackages(ctx)
	if err != nil {
		return kernelFiles{}, err
	}
	root := filepath.Join(temp, "root")
	for _, p := range packages {
		o.say("downloading the package %s (it is unpacked in the cache, not installed)", p)
		if err := aptUnpack(ctx, p, filepath.Join(temp, p), root); err != nil {
			return kernelFiles{}, err
		}
	}
	return kernelIn(root)
}

// kernelPackages are the packages with the image and the modules of the newest
// kernel for virtual machines.
func kernelPackages(ctx context.Context) ([]string, error) {
	for _, meta := range kernelMetapackages() {
		depends, err := aptDepends(ctx, meta)
		if err != nil {
			return nil, err
		}
		if image := imagePackage(depends); image != "" {
			return withModules(ctx, image)
		}
	}
	return nil, fmt.Errorf("apt knows none of the packages %s", strings.Join(kernelMetapackages(), ", "))
}

// withModules adds the package of the modules where the distribution ships
// them apart from the image.
func withModules(ctx context.Context, image string) ([]string, error) {
	depends, err := aptDepends(ctx, image)
	if err != nil {
		return nil, err
	}
	packages := []string{image}
	for _, d := range depends {
		if strings.HasPrefix(d, "linux-modules-") {
			packages = append(packages, d)
		}
	}
	return packages, nil
}

// imagePackage is the package with a kernel among the given ones: its name has
// the kernel's version.
func imagePackage(depends []string) string {
	for _, d := range depends {
		version, isImage := strings.CutPrefix(d, "linux-image-")
		version = strings.TrimPrefix(version, "unsigned-")
		if isImage && version != "" && '0' <= version[0] && version[0] <= '9' {
			return d
		}
	}
	return ""
}

// aptDepends are the names of the packages that a package depends on, none if
// apt does not know it.
func aptDepends(ctx context.Context, name string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "show", "--no-all-versions", name).Output()
	if _, exit := err.(*exec.ExitError); exit && ctx.Err() == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("apt-cache: %w", err)
	}
	return parseDepends(string(out)), nil
}

// parseDepends reads the Depends field of a package's description. Of
// alternatives it takes the first.
func parseDepends(description string) []string {
	var names []string
	for line := range strings.Lines(description) {
		field, ok := strings.CutPrefix(line, "Depends:")
		if !ok {
			continue
		}
		for _, d := range strings.Split(field, ",") {
			if words := strings.Fields(d); len(words) > 0 {
				names = append(names, words[0])
			}
		}
	}
	return names
}

// aptUnpack downloads a package into the new folder dir and unpacks it into
// root.
func aptUnpack(ctx context.Context, name, dir, root string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// As root, apt would download as the user _apt, who may not write here.
	get := exec.CommandContext(ctx, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name)
	get.Dir = dir
	if err := run(get); err != nil {
		return fmt.Errorf("download %s: %w", name, err)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("download %s: want one .deb in %s, found %d", name, dir, len(debs))
	}
	if err := run(exec.CommandContext(ctx, "dpkg-deb", "-x", debs[0], root)); err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	return nil
}

func aptUpdate(ctx context.Context) error {
	args := []string{"apt-get", "-q", "update"}
	if os.Geteuid() != 0 {
		args = append([]string{"sudo"}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = os.Stdin // sudo may ask for a password
	return run(cmd)
}

// run runs a command and puts what it wrote to standard error into the error.
func run(cmd *exec.Cmd) error {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if text := strings.TrimSpace(stderr.String()); text != "" {
			return fmt.Errorf("%s: %w: %s", cmd.Args[0], err, text)
		}
		return fmt.Errorf("%s: %w", cmd.Args[0], err)
	}
	return nil
}
