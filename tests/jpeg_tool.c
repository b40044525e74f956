/* libjpeg as the tests' other reader and writer.
 *
 * jpeg_tool read                        < files > coefficients; both are records, see test_coefficients.py
 * jpeg_tool encode W H FACTORS QUALITY  < RGB or grey pixels > a JPEG; FACTORS: "22,11,11", h and v of each component
 * jpeg_tool recode arith|huffman RESTART [SCAN ...] < a JPEG > the same coefficients; SCAN: "components,Ss,Se,Ah,Al"
 *     ("012,0,0,0,1"), or "progressive" for libjpeg's own script
 */
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

static jmp_buf failed;

static void fail(j_common_ptr cinfo) { (void)cinfo; longjmp(failed, 1); }
static void quiet(j_common_ptr cinfo) { (void)cinfo; }

static void put(uint32_t value) { fwrite(&value, 4, 1, stdout); }

static unsigned char *slurp(unsigned long *size) {
  unsigned long room = 1 << 24;
  unsigned char *data = malloc(room);
  *size = fread(data, 1, room, stdin);
  return data;
}

static void read_one(unsigned char *data, uint32_t size) {
  struct jpeg_decompress_struct in;
  struct jpeg_error_mgr errors;
  in.err = jpeg_std_error(&errors);
  errors.error_exit = fail;
  errors.output_message = quiet;
  jpeg_create_decompress(&in);
  if (setjmp(failed)) {
    put(1);
  } else {
    jpeg_mem_src(&in, data, size);
    jpeg_read_header(&in, TRUE);
    jvirt_barray_ptr *planes = jpeg_read_coefficients(&in);
    put(0);
    put((uint32_t)errors.num_warnings);
    put((uint32_t)in.num_components);
    for (int c = 0; c < in.num_components; c++) {
      jpeg_component_info *info = &in.comp_info[c];
      put(info->height_in_blocks);
      put(info->width_in_blocks);
      for (JDIMENSION row = 0; row < info->height_in_blocks; row++) {
        JBLOCKARRAY blocks = in.mem->access_virt_barray((j_common_ptr)&in, planes[c], row, 1, FALSE);
        fwrite(blocks[0], sizeof(JBLOCK), info->width_in_blocks, stdout);
      }
    }
  }
  jpeg_destroy_decompress(&in);
}

static void read_all(void) {
  uint32_t size;
  while (fread(&size, 4, 1, stdin) == 1) {
    unsigned char *data = malloc(size + 1);
    if (fread(data, 1, size, stdin) != size) exit(2);
    read_one(data, size);
    free(data);
  }
}

static void encode(char **argument) {
  struct jpeg_compress_struct out;
  struct jpeg_error_mgr errors;
  unsigned long size;
  unsigned char *pixels = slurp(&size);
  out.err = jpeg_std_error(&errors);
  jpeg_create_compress(&out);
  jpeg_stdio_dest(&out, stdout);
  out.image_width = (JDIMENSION)atoi(argument[0]);
  out.image_height = (JDIMENSION)atoi(argument[1]);
  int components = (int)(strlen(argument[2]) + 1) / 3;
  out.input_components = components;
  out.in_color_space = components == 3 ? JCS_RGB : JCS_GRAYSCALE;
  jpeg_set_defaults(&out);
  jpeg_set_quality(&out, atoi(argument[3]), FALSE);
  for (int c = 0; c < components; c++) {
    out.comp_info[c].h_samp_factor = argument[2][3 * c] - '0';
    out.comp_info[c].v_samp_factor = argument[2][3 * c + 1] - '0';
  }
  jpeg_start_compress(&out, TRUE);
  while (out.next_scanline < out.image_height) {
    JSAMPROW row = pixels + (size_t)out.next_scanline * out.image_width * components;
    jpeg_write_scanlines(&out, &row, 1);
  }
  jpeg_finish_compress(&out);
}

static void recode(int count, char **argument) {
  struct jpeg_decompress_struct in;
  struct jpeg_compress_struct out;
  struct jpeg_error_mgr errors;
  jpeg_scan_info scans[64];
  unsigned long size;
  unsigned char *data = slurp(&size);
  in.err = out.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&in);
  jpeg_create_compress(&out);
  jpeg_mem_src(&in, data, size);
  jpeg_read_header(&in, TRUE);
  jvirt_barray_ptr *planes = jpeg_read_coefficients(&in);
  jpeg_copy_critical_parameters(&in, &out);
  out.arith_code = argument[0][0] == 'a';
  out.optimize_coding = !out.arith_code;
  out.restart_interval = (unsigned)atoi(argument[1]);
  if (out.arith_code)
    for (int t = 0; t < 4; t++) { /* not the defaults, so that DAC is written and means something */
      out.arith_dc_L[t] = (UINT8)(t % 2);
      out.arith_dc_U[t] = (UINT8)(t + 1);
      out.arith_ac_K[t] = (UINT8)(5 + 6 * t);
    }
  if (count > 2 && !strcmp(argument[2], "progressive")) {
    jpeg_simple_progression(&out);
  } else if (count > 2) {
    for (int s = 0; s < count - 2; s++) {
      char *text = argument[2 + s];
      scans[s].comps_in_scan = (int)strcspn(text, ",");
      for (int c = 0; c < scans[s].comps_in_scan; c++) scans[s].component_index[c] = text[c] - '0';
      if (sscanf(strchr(text, ','), ",%d,%d,%d,%d", &scans[s].Ss, &scans[s].Se, &scans[s].Ah, &scans[s].Al) != 4)
        exit(2);
    }
    out.scan_info = scans;
    out.num_scans = count - 2;
  }
  jpeg_stdio_dest(&out, stdout);
  jpeg_write_coefficients(&out, planes);
  jpeg_finish_compress(&out);
  jpeg_finish_decompress(&in);
}

int main(int count, char **argument) {
  if (!strcmp(argument[1], "read")) read_all();
  else if (!strcmp(argument[1], "encode") && count == 6) encode(argument + 2);
  else recode(count - 2, argument + 2);
  return 0;
}
